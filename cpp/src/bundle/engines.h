// Reads engines/*/engine.json of a bundle: which engines there are, which of them this machine can
// run, and which fit a request. The schema is models/engine.schema.json. Plans are not opened here.
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
  std::vector<ShapeRange> profiles;  // of an input; an output has none
};

struct EngineComponent {
  std::string key;
  std::string plan;           // a file in the folder
  std::string context_model;  // another one, by which ONNX Runtime runs the plan, or empty
  std::uint64_t plan_bytes = 0;
  std::string graph_sha256;
  std::map<std::string, std::string> weights_sha256;  // by path in the bundle
  std::vector<EngineTensor> inputs, outputs;
  std::uint64_t weights_bytes = 0;
  std::uint64_t activation_bytes = 0;  // of the profile that needs the most
};

// The number of images of a request and their sides in pixels: smallest, most likely, largest.
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

// Throws InputError for an engine.json that cannot be read or has a newer schema.
EngineFolder read_engine_folder(const std::filesystem::path& folder);

// Returns whether the bundle has a folder of engines that `backend` built, for any machine.
bool has_engines(const Bundle& bundle, const std::string& backend);

// The library and the GPU that are to run the engines.
struct EngineTarget {
  std::string backend;  // tensorrt or tensorrt-rtx
  // Of its library, or empty where the library itself refuses engines of another version.
  std::string version;
  std::string architecture;  // of the GPU, "sm89"
};

// The engines of one graph, from one folder or from several with different profiles.
class GraphEngines {
 public:
  struct Choice {
    std::shared_ptr<const EngineFolder> folder;
    const EngineComponent* component = nullptr;
    int profile = 0;
  };

  // Returns the first profile that takes inputs of these shapes, which are given by name. Throws
  // UnavailableError that names the range, the flag, and the command that builds a wider one.
  Choice choose(const std::map<std::string, Shape>& shapes) const;

 private:
  friend class Engines;
  Graph graph_;
  std::string build_;  // the command that builds an engine
  int pixels_ = 1;     // along a side of a latent cell
  std::vector<std::shared_ptr<const EngineFolder>> folders_;
};

class Engines {
 public:
  // Throws UnavailableError when no folder is for `target`. It says of each folder what differs,
  // and which command builds one that fits.
  Engines(const Bundle& bundle, const EngineTarget& target);
  // Throws the same for an engine that is missing, incomplete, or built from another graph or other
  // weights.
  GraphEngines find(const Graph& graph) const;

 private:
  std::string differs(const EngineFolder& folder, const Graph& graph) const;

  const std::string bundle_, build_;
  const int pixels_;
  const std::map<std::string, std::string> sha256_;
  std::vector<std::shared_ptr<const EngineFolder>> folders_;
};

}  // namespace intaglio
