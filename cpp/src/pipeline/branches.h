// The transformer's branches for one request or several, in both layouts.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "pipeline/denoising.h"
#include "pipeline/row_views.h"

namespace intaglio {

// The transformer's graphs, loaded: forked, or base and degraded; conditioning, if there is one.
using TransformerSessions = std::map<std::string, std::unique_ptr<Session>>;
TransformerSessions load_transformer(const Bundle& bundle, const Backend& backend);

// Rows of each branch.
struct BranchRows {
  std::int64_t unconditional = 0, conditional = 0, degraded = 0;
  auto operator<=>(const BranchRows&) const = default;
};

// Runs the branches that each member's next evaluation needs and leaves each prediction in a buffer
// of its own. Rows stand in the order D_0, D_c, D_m; members that run D_m come last, so that what
// it continues are the last rows of D_c. With room for N images D_m begins at row 2N: running fewer
// rows takes a shorter view of the same memory, which is all the stream's and is allocated here.
// Graphs are bound once for each number of rows, and a row that stays with a member is filled once.
class Branches {
 public:
  // With room for so many images, of requests that share with `like` what the graphs take for all
  // rows: the size, the text's length, the suppressed channels.
  Branches(const Bundle& bundle, const TransformerSessions& sessions, Denoising& like,
           std::int64_t images, Stream& stream);

  // In the stream's memory: the rows of D_c when there is no more room.
  Tensor latents() const { return latent_.whole().rows(images_, 2 * images_); }

  // Fills and binds what a member that runs alone needs in any of its evaluations.
  void prepare(Denoising& member);

  // Leaves the predictions where each member's next step combines them.
  void run(std::span<Denoising* const> members);

  // Of an observed bundle, in the stream's memory: the output hidden_states [rows, T, C] or gate
  // [rows, C] of a block, of the rows that the last run() ran through it. Throws UsageError for
  // another bundle or block.
  Tensor told(const std::string& output, int block) const;

  double network_seconds = 0;  // in the graphs, of all runs

 private:
  // Who filled a row last.
  struct Filled {
    std::int64_t member = -1;
    bool unconditional = false;
    bool operator==(const Filled&) const = default;
  };
  struct Kept {
    std::int64_t member = -1;
    float keep = 1;
    bool operator==(const Kept&) const = default;
  };

  void observe();
  Tensor on_stream(const Tensor& host);
  BranchRows arrange(std::span<Denoising* const> members);
  void place(Denoising& member, bool unconditional, std::int64_t first);
  void place_degraded(Denoising& member, std::int64_t first);
  void bind(const BranchRows& rows);
  std::unique_ptr<BoundGraph> bind_base(const BranchRows& rows) const;
  std::unique_ptr<BoundGraph> bind_degraded(std::int64_t rows) const;
  std::unique_ptr<BoundGraph> bind_forked(const BranchRows& rows);
  std::vector<Binding> inputs(const std::string& graph, std::int64_t first) const;
  std::vector<Binding> outputs(std::int64_t first, std::int64_t last) const;

  const Bundle& bundle_;
  const TransformerSessions& sessions_;
  Stream& stream_;
  std::int64_t images_, fork_;            // fork_: where D_m begins
  bool forked_;                           // the layout
  RowViews latent_;                       // [2N, ...]: D_0, D_c
  RowViews timestep_;                     // likewise, where nothing is conditioned
  RowViews modulation_;                   // else
  RowViews prediction_;                   // [3N, ...]: D_0, D_c, D_m
  RowViews keep_;                         // [3N, T]
  std::map<std::string, Tensor> rows_;    // by role, [2N, ...]: D_0, D_c
  std::map<std::string, Tensor> shared_;  // by role, the same for every row
  std::map<std::string, Tensor> told_;    // by role, [2N, ...] or, after the fork, [3N, ...]
  std::vector<Filled> filled_;            // of rows_
  std::vector<Kept> kept_;                // of keep_, from fork_ on
  std::vector<Denoising*> order_;         // of the last run()
  std::int64_t first_ = 0, last_ = 0;     // its rows, of the graph that told_ is of
  // Where the layout is dual, degraded by itself, and base without it.
  std::map<BranchRows, std::unique_ptr<BoundGraph>> bound_;
};

}  // namespace intaglio
