// engines/*/engine.json of a bundle: which engines there are, which this machine can run, and which
// fit a request. The schema is models/engine.schema.json. Plans are not opened here.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "intaglio/bundle.h"

namespace intaglio {

struct ShapeRange {
  Shape min, opt, max;
};

struct EngineTensor {
  std::string name;
  std::string dtype;
  std::vector<ShapeRange> profiles;  // of inputs
};

struct EngineComponent {
  std::string key;
  std::string plan;  // a file in the folder
  std::uint64_t plan_bytes = 0;
  std::string graph_sha256;
  std::map<std::string, std::string> weights_sha256;  // by path in the bundle
  std::vector<EngineTensor> inputs, outputs;
  std::uint64_t weights_bytes = 0;
  std::uint64_t activation_bytes = 0;  // of the profile that needs most
};

// Images of one request, and their sides in pixels: smallest, likeliest, largest.
struct ImageProfile {
  std::array<int, 3> batch{}, height{}, width{};
};

struct EngineFolder {
  std::filesystem::path path;
  std::string backend, version;
  std::vector<std::string> targets;  // "sm89"
  std::vector<std::string> flags;
  std::vector<ImageProfile> profiles;
  std::map<std::string, EngineComponent> components;  // by the path of the graph
  bool weight_streaming() const;
};

// Throws InputError for an engine.json that cannot be read, or is of a newer schema.
EngineFolder read_engine_folder(const std::filesystem::path& folder);

// Whether the bundle has a folder of engines that `backend` built, for whatever machine.
bool has_engines(const Bundle& bundle, const std::string& backend);

// What is to run the engines.
struct EngineTarget {
  std::string backend;       // tensorrt or tensorrt-rtx
  std::string version;       // of its library
  std::string architecture;  // of the GPU, "sm89"
};

// The engines of one graph, from one folder or from several with other profiles.
class GraphEngines {
 public:
  struct Choice {
    std::shared_ptr<const EngineFolder> folder;
    const EngineComponent* component = nullptr;
    int profile = 0;
  };

  // The first profile that takes inputs of these shapes, by name. Throws UnavailableError saying
  // the range, the flag, and the line that builds a wider one.
  Choice choose(const std::map<std::string, Shape>& shapes) const;

 private:
  friend class Engines;
  Graph graph_;
  std::string build_;  // the command that builds again
  int pixels_ = 1;     // along a side of a latent cell
  std::vector<std::shared_ptr<const EngineFolder>> folders_;
};

class Engines {
 public:
  // Throws UnavailableError when no folder is for `target`, saying for each what differs and which
  // line builds one that is.
  Engines(const Bundle& bundle, const EngineTarget& target);
  // Throws UnavailableError likewise, for an engine that is missing, of another graph or weights,
  // or not whole.
  GraphEngines find(const Graph& graph) const;

 private:
  std::string differs(const EngineFolder& folder, const Graph& graph) const;

  const std::string bundle_, build_;
  const int pixels_;
  const std::map<std::string, std::string> sha256_;
  std::vector<std::shared_ptr<const EngineFolder>> folders_;
};

}  // namespace intaglio
