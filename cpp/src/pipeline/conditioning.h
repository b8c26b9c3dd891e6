// What prompt and timestep alone decide: the graph `conditioning`, run ahead of the loop.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/embedding.h"
#include "pipeline/request.h"

namespace intaglio {

// Its outputs for every timestep of a request's plan and for the branches D_0, where a step runs
// it, and D_c, which all images of the request share. In the stream's memory.
class Conditioning {
 public:
  // `embeds` has what the graph takes of it, and a negative prompt where a step runs D_0.
  Conditioning(const Bundle& bundle, const Session& session, const Request& request,
               const PromptEmbeds& embeds, Stream& stream);

  // [1, W], of a timestep of the plan.
  const Tensor& modulation(float timestep, bool unconditional) const;
  // [1, T, D]; only where the transformer is drawn by prompt.
  Tensor context(bool unconditional) const;

 private:
  // First D_0, where there is one.
  std::int64_t place(bool unconditional) const { return unconditional ? 0 : branches_ - 1; }
  // Of the prompts of each branch.
  using Prompts = std::vector<const PromptEmbedding*>;
  std::vector<Binding> vectors(const Bundle& bundle, const Request& request, const Prompts& prompts,
                               const std::vector<float>& timesteps, Stream& stream) const;

  std::int64_t branches_;
  std::map<float, std::int64_t> places_;  // of timesteps
  std::vector<Tensor> rows_;              // [1, W] of each timestep's branches
  Tensor context_;                        // [branches, T, D]
};

}  // namespace intaglio
