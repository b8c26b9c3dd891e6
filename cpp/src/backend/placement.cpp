#include "backend/placement.h"

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "platform/file.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

// Reads the events of nodes. A node that ran several times, as in a loop, counts once.
GraphPlacement read_profile(const fs::path& profile, const std::string& file,
                            const std::string& provider) {
  GraphPlacement placement{.graph = file};
  std::ifstream stream(profile);
  const auto events = nlohmann::json::parse(stream, nullptr, false);
  if (!events.is_array()) return placement;
  std::set<std::string> seen;
  for (const auto& event : events) {
    const auto args = event.find("args");
    if (args == event.end() || !args->contains("provider") || !args->contains("op_name")) continue;
    if (!seen.insert(args->value("node_index", "") + event.value("name", "")).second) continue;
    const std::string ran = args->value("provider", "");
    if (ran == provider) {
      ++placement.nodes;
    } else {
      ++placement.elsewhere[ran][args->value("op_name", "")];
    }
  }
  return placement;
}

}  // namespace

void Placements::add(GraphPlacement placement) {
  const std::scoped_lock lock(mutex_);
  placements_.push_back(std::move(placement));
}

std::vector<GraphPlacement> Placements::list() const {
  const std::scoped_lock lock(mutex_);
  std::map<std::string, GraphPlacement> sorted;
  for (const GraphPlacement& placement : placements_) sorted.emplace(placement.graph, placement);
  std::vector<GraphPlacement> list;
  for (auto& [graph, placement] : sorted) list.push_back(std::move(placement));
  return list;
}

PlacementProfile::PlacementProfile(std::string file, std::string provider,
                                   std::shared_ptr<Placements> found)
    : file_(std::move(file)),
      provider_(std::move(provider)),
      found_(std::move(found)),
      folder_(platform::make_private_folder()) {}

PlacementProfile::~PlacementProfile() {
  std::error_code error;
  if (!folder_.empty()) fs::remove_all(folder_, error);
}

void PlacementProfile::ask(Ort::SessionOptions& options) const {
  if (!folder_.empty()) options.EnableProfiling((folder_ / "run").c_str());
}

void PlacementProfile::end(Ort::Session& session) {
  if (folder_.empty()) return;
  Ort::AllocatorWithDefaultOptions allocator;
  const auto profile = session.EndProfilingAllocated(allocator);
  GraphPlacement placement = read_profile(profile.get(), file_, provider_);
  std::error_code error;
  fs::remove_all(folder_, error);
  if (placement.nodes || !placement.elsewhere.empty()) found_->add(std::move(placement));
}

std::vector<std::string> placement_notes(const Backend& backend) {
  std::vector<std::string> notes;
  for (const GraphPlacement& placement : backend.placements()) {
    for (const auto& [provider, operators] : placement.elsewhere) {
      int nodes = 0;
      std::string list;
      for (const auto& [name, count] : operators) {
        nodes += count;
        list += (list.empty() ? "" : ", ") + std::to_string(count) + " " + name;
      }
      notes.push_back("device " + backend.choice.device + " leaves " + std::to_string(nodes) +
                      (nodes == 1 ? " node of " : " nodes of ") + placement.graph + " to " +
                      provider + ": " + list + " (harmless, but it may take longer)");
    }
  }
  return notes;
}

}  // namespace intaglio
