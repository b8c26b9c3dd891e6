// Runs the transformer's branches for one request or several, in the host's memory.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "pipeline/branch_buffers.h"
#include "pipeline/denoising_state.h"
#include "pipeline/layout_graphs.h"
#include "pipeline/loop_executor.h"

namespace intaglio {

// What the requests that run together have in common.
struct SharedInputs {
  struct Size {
    Shape shape;  // [1, ...], of one row
    DType dtype = DType::float32;
  };
  Shape latent;  // [1, ...]: of one image
  std::int64_t token_rows = 0, token_columns = 0;
  std::vector<Grid> reference_grids;
  Tensor channel_mask, ref;     // [C]
  std::map<Role, Size> rows;    // the inputs that stay the same for a row
  std::int64_t modulation = 0;  // its size; 0 where the transformer takes timesteps
  bool third_branch = false;
};
SharedInputs shared_inputs(DenoisingState& state);
// Returns the inputs that are the same for every row, in host memory.
std::map<Role, Tensor> inputs_of_all_rows(const Bundle& bundle, const SharedInputs& shared);

// Runs the branches that each request's next evaluation needs and leaves each prediction in memory
// of its own. Requests that run D_m come last among the rows of D_c, so that what D_m continues are
// the last of them. A row's inputs are filled once, as long as it stays with its request.
class BranchExecutor final : public LoopExecutor {
 public:
  // Has room for so many images, of requests whose shared inputs are `shared`.
  BranchExecutor(const Bundle& bundle, const TransformerSessions& sessions,
                 const SharedInputs& shared, std::int64_t images, Stream& stream);
  BranchExecutor(const BranchExecutor&) = delete;  // the graphs point into the buffers
  BranchExecutor& operator=(const BranchExecutor&) = delete;

  void add(DenoisingState& state, const LoopStart& start, bool alone) override;
  void remove(std::int64_t) override {}
  void run(std::span<DenoisingState* const> states) override;
  void step(DenoisingState& state) override;
  void wait() override { stream_.wait(); }
  Tensor latents(const DenoisingState& state) override { return state.guided.x; }
  void set_latents(const DenoisingState& state, const Tensor& latents) override {
    stream_.copy(latents, state.guided.x);
  }
  std::function<Tensor()> denoised(const DenoisingState& state) override;
  Tensor observed(Role::Kind output, int block) override;

 private:
  // The request whose inputs a row holds.
  struct RowOwner {
    std::int64_t id = -1;
    Branch branch = Branch::conditional;
    bool operator==(const RowOwner&) const = default;
  };
  // The request and the ma_keep that a row was filled with.
  struct RowKeep {
    std::int64_t id = -1;
    float ma_keep = 1;
    bool operator==(const RowKeep&) const = default;
  };

  Tensor on_stream(const Tensor& host);
  void allocate_observed();
  void prepare(DenoisingState& state);
  BranchRows assign_rows(std::span<DenoisingState* const> states);
  void fill_rows(DenoisingState& state, Branch branch, std::int64_t first);
  void fill_degraded_rows(DenoisingState& state, std::int64_t first);
  void fill_keep(DenoisingState& state, std::int64_t first, float ma_keep);
  // Where a request's rows of each branch begin, and the first row that runs.
  struct FirstRows {
    std::int64_t running, third, unconditional, conditional;
  };
  void fill_source(DenoisingState& state, std::int64_t row, std::optional<std::int64_t> third);
  void fill_sources(DenoisingState& state, const BranchRows& rows, const FirstRows& at);
  void fill_anchors(std::int64_t row, std::int64_t images, std::int64_t anchor);

  const Bundle& bundle_;
  Stream& stream_;
  BranchBuffers buffers_;
  std::unique_ptr<LayoutGraphs> graphs_;
  std::vector<RowOwner> owners_;          // of the rows of D_0 and D_c
  std::vector<RowKeep> keeps_;            // of all rows
  Tensor anchor_;                         // [2N], or not defined where the graph does not take it
  std::vector<DenoisingState*> ordered_;  // the requests of the last run()
  BranchRows last_rows_;                  // of the last run()
};

}  // namespace intaglio
