#include "pipeline/layout_graphs.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace intaglio {

namespace {

// The graph's inputs for D_0 and D_c from row `first` on, and those that all rows share. keep,
// branch and source are left to the caller.
std::vector<Binding> inputs_of(const Graph& graph, const BranchBuffers& buffers,
                               std::int64_t first) {
  std::vector<Binding> bindings;
  for (const GraphTensor& input : graph.inputs) {
    if (const auto rows = buffers.rows.find(input.role); rows != buffers.rows.end()) {
      bindings.push_back({input.role, rows->second.rows(first, buffers.fork())});
    } else if (const auto shared = buffers.shared.find(input.role);
               shared != buffers.shared.end()) {
      bindings.push_back({input.role, shared->second});
    }
  }
  return bindings;
}

Binding keep_of(const BranchBuffers& buffers, std::int64_t first, std::int64_t last) {
  return {Role::keep, buffers.ma_keep.whole().rows(first, last)};
}

Binding prediction_of(const BranchBuffers& buffers, std::int64_t first, std::int64_t last) {
  return {Role::prediction, buffers.prediction.whole().rows(first, last)};
}

// The outputs of the graph that every step runs.
std::vector<Binding> outputs_of(const BranchBuffers& buffers, std::int64_t first,
                                std::int64_t last) {
  std::vector<Binding> bindings{prediction_of(buffers, first, last)};
  for (const auto& [role, tensor] : buffers.observed)
    bindings.push_back({role, tensor.rows(first, std::min(last, tensor.dim(0)))});
  return bindings;
}

// One graph that forks after block m.
class ForkedGraphs final : public LayoutGraphs {
 public:
  ForkedGraphs(const Graph& graph, const Session& session, const BranchBuffers& buffers,
               Stream& stream)
      : graph_(graph), session_(session), buffers_(buffers), stream_(stream) {}

  void bind(const BranchRows& rows) override {
    auto& bound = bound_[rows];
    if (bound) return;
    const std::int64_t first = buffers_.fork() - rows.base();
    const std::int64_t last = buffers_.fork() + rows.degraded;
    auto inputs = inputs_of(graph_, buffers_, first);
    inputs.push_back({Role::branch, branch_of(rows)});
    inputs.push_back(keep_of(buffers_, first, last));
    if (graph_.takes(Role::source))
      inputs.push_back({Role::source, buffers_.source.rows(first, last)});
    bound = session_.bind(inputs, outputs_of(buffers_, first, last));
  }

  void run(const BranchRows& rows) override { bound_.at(rows)->run(); }

 private:
  // The row that each row continues after the fork.
  Tensor branch_of(const BranchRows& rows) {
    const std::int64_t count = rows.base() + rows.degraded;
    Tensor host({count}, DType::int64);
    for (std::int64_t row = 0; row < count; ++row) {
      // D_m continues the D_c of its image, which is among the last rows of D_c.
      host.int64s()[static_cast<std::size_t>(row)] = row < rows.base() ? row : row - rows.degraded;
    }
    Tensor branch = stream_.allocate(host.shape(), host.dtype());
    stream_.copy(host, branch);
    return branch;
  }

  const Graph& graph_;
  const Session& session_;
  const BranchBuffers& buffers_;
  Stream& stream_;
  std::map<BranchRows, std::unique_ptr<BoundGraph>> bound_;
};

// Two graphs: `base` runs D_0 and D_c, `degraded` runs D_m from the latents on.
class DualGraphs final : public LayoutGraphs {
 public:
  DualGraphs(const Bundle& bundle, const TransformerSessions& sessions,
             const BranchBuffers& buffers)
      : bundle_(bundle), sessions_(sessions), buffers_(buffers) {}

  void bind(const BranchRows& rows) override {
    if (auto& base = base_[rows.base()]; !base) base = bind_base(rows.base());
    if (rows.degraded == 0) return;
    if (auto& degraded = degraded_[rows.degraded]; !degraded)
      degraded = bind_degraded(rows.degraded);
  }

  void run(const BranchRows& rows) override {
    base_.at(rows.base())->run();
    if (rows.degraded > 0) degraded_.at(rows.degraded)->run();
  }

 private:
  std::unique_ptr<BoundGraph> bind_base(std::int64_t rows) const {
    const std::int64_t fork = buffers_.fork();
    return sessions_.at("base")->bind(
        inputs_of(bundle_.transformer_graphs.at("base"), buffers_, fork - rows),
        outputs_of(buffers_, fork - rows, fork));
  }

  std::unique_ptr<BoundGraph> bind_degraded(std::int64_t rows) const {
    const std::int64_t fork = buffers_.fork();
    auto inputs = inputs_of(bundle_.transformer_graphs.at("degraded"), buffers_, fork - rows);
    inputs.push_back(keep_of(buffers_, fork, fork + rows));
    return sessions_.at("degraded")->bind(inputs, {prediction_of(buffers_, fork, fork + rows)});
  }

  const Bundle& bundle_;
  const TransformerSessions& sessions_;
  const BranchBuffers& buffers_;
  std::map<std::int64_t, std::unique_ptr<BoundGraph>> base_, degraded_;  // by their rows
};

}  // namespace

std::unique_ptr<LayoutGraphs> make_layout_graphs(const Bundle& bundle,
                                                 const TransformerSessions& sessions,
                                                 const BranchBuffers& buffers, Stream& stream) {
  if (bundle.layout == Layout::dual) return std::make_unique<DualGraphs>(bundle, sessions, buffers);
  return std::make_unique<ForkedGraphs>(bundle.transformer(), *sessions.at("forked"), buffers,
                                        stream);
}

}  // namespace intaglio
