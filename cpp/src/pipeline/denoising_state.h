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
#include "intaglio/rng.h"
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

// Decides the same for the guided prediction, and whether a step may be skipped.
class GuidedTimesteps {
 public:
  // Must be called for every evaluation, in order. `branches_changed` says that earlier predictions
  // had other branches.
  GuidedLine next(float timestep, bool skipped, bool branches_changed);

 private:
  int count_ = 0;  // timesteps at which the model ran since the branches changed
  float newer_ = 0, older_ = 0;
};

// Where the loop starts, in host memory and laid out as the loop has it.
struct LoopStart {
  Tensor latents;
  Kept kept = {};
  Tensor references = {};  // [1, tokens, C]; not defined() for a bundle that takes none
};

// What the evaluations of a request ran so far.
struct RunCounts {
  std::int64_t base_rows = 0, forked_rows = 0;  // through blocks 0..m, and through the blocks after
  int evaluations = 0;                          // that were not skipped
  std::vector<int> skipped_steps, unconditional_steps, degraded_steps;
  // From the line to the first prediction after skipped steps, relative to that prediction.
  double largest_distance = 0;
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
                 const Tensor& references, Stream& stream, DeviceMemory* memory, std::int64_t id);

  // Allocates what `guided` needs in the stream's memory. `x` is memory of the stream that the
  // state keeps the latents in.
  void begin(Tensor x, const LoopStart& start);

  std::int64_t id() const { return id_; }
  const std::shared_ptr<const Request>& request() const { return request_; }
  std::int64_t images() const { return request_->images; }
  bool ended() const { return position_ == request_->plan.size(); }
  // The evaluation that comes next, and the one before it.
  const Evaluation& next() const { return request_->plan[position_]; }
  const Evaluation& last() const { return request_->plan[position_ - 1]; }
  // The weights of the next evaluation's step. It is skipped where the request says so and the
  // line through the last two predictions has held so far.
  const StepWeights& weights() const { return weights_; }
  // Whether the last evaluation was skipped, so that the model did not run.
  bool last_skipped() const { return guided.line.skipped; }

  // The inputs, [1, ...] each, that stay the same for every row of a branch.
  const std::vector<Binding>& row(Branch branch) const {
    if (branch == Branch::degraded && transports()) return source_row_;
    return branch == Branch::unconditional ? unconditional_row_ : conditional_row_;
  }
  // The modulation of the next evaluation, [1, W]; null where the transformer takes the timestep
  // itself.
  const Tensor* modulation(Branch branch);
  // All modulations that are computed together with the next evaluation's, [rows, W].
  const Tensor* modulation_part();
  // Whether D_m skips blocks. It then runs from the first block on, as D_0 and D_c do.
  bool transports() const { return request_->transports(); }
  bool third_branch() const { return request_->third_branch(); }
  const Tensor& token_mask() const { return token_mask_; }  // [tokens]
  // What DG's term is multiplied by, [1, ...] as the latents of an image; not defined where that is
  // 1 everywhere.
  const Tensor& term_mask() const { return guided.term_mask; }

  // What the next evaluation computes. It holds x and the sampler's memory; BranchExecutor puts the
  // predictions here.
  GuidedStep guided;
  // Puts the numbers of the next evaluation into `guided`, and its noise, in host memory, where the
  // sampler adds some.
  void prepare_step();
  // The numbers of all evaluations as long as no step is skipped, [evaluations, kStepColumns]
  // (core/step_table.h).
  Tensor step_table() const;
  // Writes the row of the next evaluation, which prepare_step() has prepared.
  void write_next(Tensor table) const;
  // Whether the step has to measure how far its prediction is from the line.
  bool measures_distance() const;
  // Goes on to the next evaluation, when x was moved. `distance` is the largest of all images.
  void advance(double distance);

  const RunCounts& counts() const { return counts_; }

 private:
  void begin_step();
  bool begins_step() const { return position_ == 0 || last().ended; }
  void count();
  std::vector<Binding> make_row(const PromptEmbeddings& embeddings, Branch branch) const;
  Tensor on_stream(const Tensor& host) const;
  ToDenoised to_denoised(const StepPoint& point) const;
  // Elements of a token whose guided prediction is scaled, or 0.
  std::size_t token_size() const;

  const Bundle* bundle_;
  std::shared_ptr<const Request> request_;
  Stream* stream_;
  std::int64_t id_;
  std::optional<Precomputed> precomputed_;
  Tensor references_;  // [1, tokens, C]
  std::vector<Binding> unconditional_row_, conditional_row_, source_row_;
  Tensor token_mask_;
  std::size_t position_ = 0;       // in the plan
  StepWeights weights_;            // of the next evaluation's step
  bool branches_changed_ = false;  // from the step before it
  bool after_skipped_ = false;     // whether the evaluation before was skipped
  DeltaTimesteps unconditional_, degraded_;
  GuidedTimesteps guided_timesteps_;
  std::optional<BatchNoise> noise_;  // that the sampler adds
  bool has_previous_ = false;        // whether Correction has a D of an evaluation before
  double step_distance_ = 0;         // the largest of the last step that ran
  RunCounts counts_;
};

}  // namespace intaglio
