// The memory that the transformer's graphs read and write.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "pipeline/row_views.h"

namespace intaglio {

// The transformer's graphs, loaded: forked, or base and degraded; and conditioning where the bundle
// has it.
using TransformerSessions = std::map<std::string, std::unique_ptr<Session>>;

// The number of rows of each branch. Those of a third branch that runs from the first block on
// (Request::third_branch) are `third`.
struct BranchRows {
  std::int64_t third = 0, unconditional = 0, conditional = 0, degraded = 0;
  std::int64_t base() const { return third + unconditional + conditional; }
  auto operator<=>(const BranchRows&) const = default;
};

// Rows are in the order D_0, D_c, D_m. With room for N images D_m begins at row 2N, and D_0 and
// D_c end there, so that fewer rows are a shorter view of the same memory. Those of
// a third branch come before those of D_0, and then there are 3N rows up to the end of D_c. All of
// it is the stream's.
struct BranchBuffers {
  std::int64_t images = 0;          // N
  std::int64_t base_branches = 2;   // or 3 with a third branch
  RowViews latent;                  // [2N, ...]
  RowViews timestep;                // [2N]; not defined where modulations are precomputed
  RowViews modulation;              // [2N, W]; not defined where the graph takes timesteps
  RowViews prediction;              // [3N, ...]
  RowViews ma_keep;                 // [3N, T]
  Tensor source;                    // [3N, T], or not defined where the graph does not take it
  std::map<Role, Tensor> rows;      // [2N, ...]: the inputs above, and what stays with a prompt
  std::map<Role, Tensor> shared;    // inputs that are the same for every row
  std::map<Role, Tensor> observed;  // outputs: [2N, ...] or, after the fork, [3N, ...]

  std::int64_t fork() const { return base_branches * images; }  // the row where D_c ends
};

}  // namespace intaglio
