// One request on its way through its plan.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/guided_step.h"
#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/embedding.h"
#include "intaglio/pipeline.h"
#include "pipeline/conditioning.h"
#include "pipeline/request.h"

namespace intaglio {

// The timesteps of a branch's evaluations whose differences from D_c are kept.
class KeptTimesteps {
 public:
  // To be called for every evaluation: what it does about the branch.
  Delta next(float timestep, bool has_weight, bool reused);

 private:
  int count_ = 0;  // that ran the branch since it last had no weight
  float newer_ = 0, older_ = 0;
};

// Its place in the plan, its latents and the sampler's memory of them, and what its rows of the
// transformer's inputs take. All of it is the stream's memory, allocated here.
class Denoising {
 public:
  // `conditioning` is the graph of that name, or null. `embeds` has what the graphs take of it, and
  // a negative prompt when any step of the request runs the unconditional branch. `id` tells it
  // from others that share its branches.
  Denoising(const Bundle& bundle, const Session* conditioning,
            std::shared_ptr<const Request> request, const PromptEmbeds& embeds, Stream& stream,
            std::int64_t id = 0);

  // From `latents`, kept in `x`, which is the stream's.
  void begin(Tensor x, const Tensor& latents);

  std::int64_t id() const { return id_; }
  const std::shared_ptr<const Request>& request() const { return request_; }
  std::int64_t images() const { return request_->images; }
  bool ended() const { return place_ == request_->plan.size(); }
  // The evaluation that comes next, and its step's weights.
  const Evaluation& next() const { return request_->plan[place_]; }
  const StepWeights& weights() const {
    return request_->weights[static_cast<std::size_t>(next().point.step)];
  }

  // Of a row of D_0, where a step runs it, or of D_c: what stays the same, [1, ...] each.
  const std::vector<Binding>& row(bool unconditional) const {
    return unconditional ? unconditional_row_ : conditional_row_;
  }
  // [1, W] of the next evaluation; null where the transformer takes the timestep itself.
  const Tensor* modulation(bool unconditional);
  const Tensor& suppression() const { return suppression_; }  // [tokens]

  // What the next evaluation does: x and its own memory, and where Branches put the predictions.
  GuidedStep guided;

  // Moves x by the predictions, and on to the next evaluation. Returns the one it was.
  const Evaluation& advance();

  // Of all evaluations, once they are done. Throws InputError for latents that are not finite.
  void conclude(Generation& generation) const;

 private:
  std::vector<Binding> make_row(const PromptEmbeds& embeds, bool unconditional) const;
  Tensor on_stream(const Tensor& host) const;

  const Bundle* bundle_;
  std::shared_ptr<const Request> request_;
  Stream* stream_;
  std::int64_t id_;
  std::optional<Conditioning> conditioning_;
  std::vector<Binding> unconditional_row_, conditional_row_;
  Tensor suppression_;
  std::size_t place_ = 0;
  KeptTimesteps unconditional_, degraded_;
  std::int64_t base_rows_ = 0, forked_rows_ = 0;
};

// Throws InputError, saying what to do, for values that are not finite.
void check_finite(const Tensor& latents);

Tensor on_host(Stream& stream, const Tensor& tensor);

}  // namespace intaglio
