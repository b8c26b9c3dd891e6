// What prompt and timestep alone decide: the graph `conditioning`, run ahead of the loop.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/embedding.h"
#include "pipeline/request.h"
#include "pipeline/skipped_layers.h"

namespace intaglio {

// The third is D_m, or the row of the prompt that massive channels come from.
enum class Branch { unconditional, conditional, degraded };

// The graph's outputs for the timesteps of a request's plan and for the branches D_c and, where a
// step runs it, D_0. Where D_m skips blocks, it has modulations of its own, D_c's without the gates
// of these blocks; else it has D_c's. The prompt that massive channels come from has its own. All
// images of the request share them. Memory holds one part
// of the schedule at a time, since a modulation of a large model is four megabytes.
class Precomputed {
 public:
  // `embeddings` must have what the graph takes, and a negative prompt where a step runs D_0. The
  // modulations are in `memory`, or in the stream's where it is null.
  Precomputed(const Bundle& bundle, const Session& session, const Request& request,
              const PromptEmbeddings& embeddings, Stream& stream, DeviceMemory* memory);

  // Returns the modulations of the part that has a timestep of the plan, [rows, W]. They are valid
  // until another part is asked for.
  const Tensor& part(float timestep);
  // Returns the row of a timestep and a branch in its part.
  std::int64_t row(float timestep, Branch branch) const;
  // Returns that row in the stream's memory, [1, W].
  const Tensor& modulation(float timestep, Branch branch);
  // Returns the projected prompt, [1, T, D]. The transformer must be drawn by prompt.
  Tensor context(Branch branch) const;

 private:
  using Prompts = std::vector<const TextConditioning*>;  // of each branch

  // The index of a branch: D_0 comes first, where there is one, then the third branch
  // of a request that has one.
  std::int64_t branch_index(Branch branch) const;
  void close_gates(std::int64_t part);
  Tensor add(std::vector<Binding>& bindings, Role role, const Shape& shape,
             DType dtype = DType::float32);
  std::vector<Binding> inputs(const Bundle& bundle, const Request& request, const Prompts& prompts);
  std::vector<Binding> outputs(const Graph& graph, const Shape& text, DeviceMemory* memory);
  std::int64_t index(float timestep, Branch branch) const;
  std::int64_t first_row(std::int64_t part) const;
  void run(std::int64_t part);

  Stream& stream_;
  DeviceMemory* memory_;                     // null where modulations are the stream's
  std::vector<std::vector<Columns>> gates_;  // of the blocks that D_m skips, by timestep
  bool third_;                               // whether the third branch has rows of its own
  std::int64_t branches_;
  std::int64_t rows_;                      // of a part
  std::map<float, std::int64_t> indices_;  // of timesteps, in the order of the plan
  std::int64_t all_rows_;                  // of the whole plan
  std::vector<Tensor> timesteps_;          // [rows_] of each part, on the host
  Tensor timestep_;                        // [rows_], the graph's input
  Tensor modulation_;                      // [rows_, W]
  std::vector<Tensor> modulation_rows_;    // views of it, in the stream's memory only
  Tensor context_;                         // [branches, T, D]
  std::int64_t part_ = 0;                  // the part that was run last
  std::unique_ptr<BoundGraph> bound_;
};

}  // namespace intaglio
