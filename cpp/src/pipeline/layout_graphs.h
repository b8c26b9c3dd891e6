// The transformer's graphs in the layout that the bundle has.
#pragma once

#include <memory>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "pipeline/branch_buffers.h"

namespace intaglio {

// Runs the branches on the buffers. Graphs are bound once for each number of rows.
class LayoutGraphs {
 public:
  virtual ~LayoutGraphs() = default;
  // Binds what run() needs for so many rows, unless it is bound already.
  virtual void bind(const BranchRows& rows) = 0;
  // The rows must be bound.
  virtual void run(const BranchRows& rows) = 0;
};

// All arguments must outlive the result.
std::unique_ptr<LayoutGraphs> make_layout_graphs(const Bundle& bundle,
                                                 const TransformerSessions& sessions,
                                                 const BranchBuffers& buffers, Stream& stream);

}  // namespace intaglio
