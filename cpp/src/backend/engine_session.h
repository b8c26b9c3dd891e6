// Runs a graph with the engines that `intaglio build` made, and compiles it where none fits.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "bundle/engines.h"
#include "intaglio/backend.h"
#include "intaglio/bundle.h"

namespace intaglio {

// Which graphs ran as engines, and which the provider compiled. Several threads may use it at once.
class EngineUse {
 public:
  void add_engine(const std::string& graph, const std::filesystem::path& folder);
  // `reason` says why no engine was used.
  void add_compiled(const std::string& graph, const std::string& reason);
  // Returns a part of Backend::description(); empty before a graph was bound.
  std::string text() const;

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::set<std::string>> engines_;   // graphs by folder
  std::map<std::string, std::set<std::string>> compiled_;  // graphs by reason
};

// Opens an engine's context model, or the graph of the bundle when the path is empty.
using OpenEngine = std::function<std::unique_ptr<Session>(const std::filesystem::path&)>;

class EngineSession final : public Session {
 public:
  // Without `engines`, `reason` says why.
  EngineSession(Graph graph, std::optional<GraphEngines> engines, std::string reason,
                OpenEngine open, std::shared_ptr<EngineUse> use);

  // Chooses the engine by the shapes of the inputs. What is not open yet is opened first, which
  // takes long when the provider compiles the graph.
  std::unique_ptr<BoundGraph> bind(const std::vector<Binding>& inputs,
                                   const std::vector<Binding>& outputs) const override;

 private:
  const Session& session_for(const std::map<std::string, Shape>& shapes) const;
  const Session* engine_for(const std::map<std::string, Shape>& shapes, std::string& reason) const;

  const Graph graph_;
  const std::optional<GraphEngines> engines_;
  const std::string reason_;
  const OpenEngine open_;
  const std::shared_ptr<EngineUse> use_;
  mutable std::mutex mutex_;
  mutable std::map<std::filesystem::path, std::unique_ptr<Session>> open_engines_;
  mutable std::map<std::filesystem::path, std::string> refused_;  // with what the provider said
  mutable std::unique_ptr<Session> compiled_;
};

}  // namespace intaglio
