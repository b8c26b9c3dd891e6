// Which provider runs each node of a graph, read from ONNX Runtime's profile of the first run.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/ort_api.h"
#include "intaglio/backend.h"

namespace intaglio {

// What the sessions of a backend have found out. Several threads may add to it at once.
class Placements {
 public:
  void add(GraphPlacement placement);
  // Returns one entry for each graph that has run, by path.
  std::vector<GraphPlacement> list() const;

 private:
  mutable std::mutex mutex_;
  std::vector<GraphPlacement> placements_;
};

// The profile of one session from its creation until its first run has ended. Without a folder for
// temporary files there is none, and nothing is found out.
class PlacementProfile {
 public:
  // `file` is the path of the graph in its bundle, and `provider` the one that should run it.
  PlacementProfile(std::string file, std::string provider, std::shared_ptr<Placements> found);
  ~PlacementProfile();
  PlacementProfile(const PlacementProfile&) = delete;
  PlacementProfile& operator=(const PlacementProfile&) = delete;

  // Asks ONNX Runtime for a profile of the session that is made with these options.
  void ask(Ort::SessionOptions& options) const;

  // Calls `run`, which runs the session. The first run ends the profile, which is then read. The
  // runs of other threads wait until then, because ONNX Runtime would fail in them.
  template <typename Run>
  void run(Ort::Session& session, Run&& run) {
    bool ran = false;
    std::call_once(once_, [&] {
      run();
      ran = true;
      end(session);
    });
    if (!ran) run();
  }

 private:
  void end(Ort::Session& session);

  std::string file_, provider_;
  std::shared_ptr<Placements> found_;
  std::filesystem::path folder_;  // holds nothing but the profile
  std::once_flag once_;
};

}  // namespace intaglio
