// The state of one request in the denoising loop.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/guided_step.h"
#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/embedding.h"
#include "pipeline/precompute.h"
#include "pipeline/request.h"

namespace intaglio {

// Decides how a branch's difference from D_c comes about in each evaluation, from the timesteps at
// which the last two differences were computed.
class DeltaTimesteps {
 public:
  // Must be called for every evaluation, in order.
  Delta next(float timestep, bool has_weight, bool reused);

 private:
  int count_ = 0;  // evaluations that ran the branch since it last had no weight
  float newer_ = 0, older_ = 0;
};

// The request's position in its plan, its rows of the transformer's inputs and, where the loop runs
// in the host's memory, its latents and the sampler's memory.
class DenoisingState {
 public:
  // `precompute` is the graph that runs ahead of the loop, or null. `embeddings` must have what the
  // graphs take, with a negative prompt when any step of the request runs D_0. `id` identifies the
  // request among those that share the transformer. Modulations are computed in `memory`, or in the
  // stream's where it is null.
  DenoisingState(const Bundle& bundle, const Session* precompute,
                 std::shared_ptr<const Request> request, const PromptEmbeddings& embeddings,
                 Stream& stream, DeviceMemory* memory, std::int64_t id);

  // Allocates what `guided` needs in the stream's memory and starts from `latents`. `x` is memory
  // of the stream that the state keeps them in.
  void begin(Tensor x, const Tensor& latents);

  std::int64_t id() const { return id_; }
  const std::shared_ptr<const Request>& request() const { return request_; }
  std::int64_t images() const { return request_->images; }
  bool ended() const { return position_ == request_->plan.size(); }
  // The evaluation that comes next, and the one before it.
  const Evaluation& next() const { return request_->plan[position_]; }
  const Evaluation& last() const { return request_->plan[position_ - 1]; }
  // The weights of the next evaluation's step.
  const StepWeights& weights() const {
    return request_->weights[static_cast<std::size_t>(next().point.step)];
  }

  // The inputs, [1, ...] each, that stay the same for every row of D_0 or of D_c.
  const std::vector<Binding>& row(bool unconditional) const {
    return unconditional ? unconditional_row_ : conditional_row_;
  }
  // The modulation of the next evaluation, [1, W]; null where the transformer takes the timestep
  // itself.
  const Tensor* modulation(bool unconditional);
  // All modulations that are computed together with the next evaluation's, [rows, W].
  const Tensor* modulation_part();
  const Tensor& token_mask() const { return token_mask_; }  // [tokens]

  // What the next evaluation computes. It holds x and the sampler's memory; BranchExecutor puts the
  // predictions here.
  GuidedStep guided;
  // Puts the numbers of the next evaluation into `guided`.
  void prepare_step();
  // The numbers of all evaluations, [evaluations, kStepColumns] (core/step_table.h).
  Tensor step_table() const;
  // Goes on to the next evaluation, when x was moved.
  void advance();

  // Rows that ran so far through blocks 0..m, and through the blocks after m.
  std::int64_t base_rows() const { return base_rows_; }
  std::int64_t forked_rows() const { return forked_rows_; }

 private:
  std::vector<Binding> make_row(const PromptEmbeddings& embeddings, bool unconditional) const;
  Tensor on_stream(const Tensor& host) const;
  Combine combine(std::size_t position, DeltaTimesteps& unconditional,
                  DeltaTimesteps& degraded) const;
  ToDenoised to_denoised(std::size_t position) const;

  const Bundle* bundle_;
  std::shared_ptr<const Request> request_;
  Stream* stream_;
  std::int64_t id_;
  std::optional<Precomputed> precomputed_;
  std::vector<Binding> unconditional_row_, conditional_row_;
  Tensor token_mask_;
  std::size_t position_ = 0;  // in the plan
  DeltaTimesteps unconditional_, degraded_;
  std::int64_t base_rows_ = 0, forked_rows_ = 0;
};

}  // namespace intaglio
