#include "backend/engine_session.h"

#include <utility>

#include "intaglio/error.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

std::string joined(const std::set<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

void EngineUse::add_engine(const std::string& graph, const fs::path& folder) {
  const std::scoped_lock lock(mutex_);
  engines_[folder.filename().string()].insert(graph);
}

void EngineUse::add_compiled(const std::string& graph, const std::string& reason) {
  const std::scoped_lock lock(mutex_);
  compiled_[reason].insert(graph);
}

std::string EngineUse::text() const {
  const std::scoped_lock lock(mutex_);
  std::string text;
  for (const auto& [folder, graphs] : engines_)
    text += "; engines/" + folder + " runs " + joined(graphs);
  for (const auto& [reason, graphs] : compiled_)
    text += "; the provider compiled " + joined(graphs) + ", because " + reason;
  return text;
}

EngineSession::EngineSession(Graph graph, std::optional<GraphEngines> engines, std::string reason,
                             OpenEngine open, std::shared_ptr<EngineUse> use)
    : graph_(std::move(graph)),
      engines_(std::move(engines)),
      reason_(std::move(reason)),
      open_(std::move(open)),
      use_(std::move(use)) {}

std::unique_ptr<BoundGraph> EngineSession::bind(const std::vector<Binding>& inputs,
                                                const std::vector<Binding>& outputs) const {
  std::map<std::string, Shape> shapes;
  for (const Binding& input : inputs) shapes[graph_.input(input.role).name] = input.tensor.shape();
  return session_for(shapes).bind(inputs, outputs);
}

const Session& EngineSession::session_for(const std::map<std::string, Shape>& shapes) const {
  const std::scoped_lock lock(mutex_);
  std::string reason = reason_;
  if (const Session* engine = engine_for(shapes, reason)) return *engine;
  if (!compiled_) compiled_ = open_({});
  use_->add_compiled(graph_.path, reason);
  return *compiled_;
}

// Returns null, and says why in `reason`, when no engine takes inputs of these shapes.
const Session* EngineSession::engine_for(const std::map<std::string, Shape>& shapes,
                                         std::string& reason) const {
  if (!engines_) return nullptr;
  try {
    const GraphEngines::Choice choice = engines_->choose(shapes);
    const fs::path& folder = choice.folder->path;
    // Sessions run the first profile: the provider takes another one from the options of a run.
    if (choice.component->context_model.empty() || choice.profile > 0) {
      reason = "engines/" + folder.filename().string() + " fits in another profile than its first";
      if (choice.profile == 0)
        reason = "an older Intaglio built engines/" + folder.filename().string();
      return nullptr;
    }
    const fs::path model = folder / choice.component->context_model;
    if (const auto refused = refused_.find(model); refused != refused_.end()) {
      reason = refused->second;
      return nullptr;
    }
    auto& session = open_engines_[model];
    try {
      if (!session) session = open_(model);
    } catch (const UnavailableError& error) {  // of another version, or for another card
      reason = refused_[model] = error.what();
      return nullptr;
    }
    use_->add_engine(graph_.path, folder);
    return session.get();
  } catch (const UnavailableError& error) {  // no engine is for these shapes
    reason = error.what();
    return nullptr;
  }
}

}  // namespace intaglio
