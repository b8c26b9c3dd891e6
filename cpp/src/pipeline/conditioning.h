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

namespace intaglio {

// Its outputs for the timesteps of a request's plan and for the branches D_0, where a step runs it,
// and D_c, which all images of the request share. In the stream's memory: of one part of the
// schedule at a time, since a modulation of a large model is four megabytes.
class Conditioning {
 public:
  // `embeds` has what the graph takes of it, and a negative prompt where a step runs D_0.
  Conditioning(const Bundle& bundle, const Session& session, const Request& request,
               const PromptEmbeds& embeds, Stream& stream);

  // [1, W], of a timestep of the plan; valid until that of another part is asked for.
  const Tensor& modulation(float timestep, bool unconditional);
  // [1, T, D]; only where the transformer is drawn by prompt.
  Tensor context(bool unconditional) const;

 private:
  using Prompts = std::vector<const PromptEmbedding*>;  // of each branch

  // First D_0, where there is one.
  std::int64_t place(bool unconditional) const { return unconditional ? 0 : branches_ - 1; }
  Tensor add(std::vector<Binding>& bindings, const char* role, const Shape& shape,
             DType dtype = DType::float32);
  std::vector<Binding> inputs(const Bundle& bundle, const Request& request, const Prompts& prompts);
  std::vector<Binding> outputs(const Graph& graph, const Shape& text);
  std::int64_t first_row(std::int64_t part) const;
  void run(std::int64_t part);

  Stream& stream_;
  std::int64_t branches_;
  std::int64_t rows_;                     // of a part
  std::map<float, std::int64_t> places_;  // of timesteps
  std::int64_t all_rows_;                 // of the whole plan
  std::vector<Tensor> timesteps_;         // [rows_] of each part, on the host
  Tensor timestep_;                       // [rows_], the graph's input
  std::vector<Tensor> modulation_;        // [1, W] of each row of the part
  Tensor context_;                        // [branches, T, D]
  std::int64_t part_ = 0;                 // that was run last
  std::unique_ptr<BoundGraph> bound_;
};

}  // namespace intaglio
