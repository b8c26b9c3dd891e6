#include "pipeline/denoising_state.h"

#include <algorithm>
#include <utility>

namespace intaglio {

Delta DeltaTimesteps::next(float timestep, bool has_weight, bool reused) {
  if (has_weight && !reused) older_ = std::exchange(newer_, timestep);
  count_ = has_weight ? count_ + (reused ? 0 : 1) : 0;
  if (!reused) return {};
  const bool line = count_ > 1 && newer_ != older_;
  return {.reused = true, .slope = line ? (timestep - newer_) / (newer_ - older_) : 0.0F};
}

GuidedLine GuidedTimesteps::next(float timestep, bool skipped, bool branches_changed) {
  if (branches_changed) count_ = 0;
  GuidedLine line{.skipped = skipped,
                  .compared = count_ > 1,
                  .same_time = count_ > 0 && timestep == newer_,
                  .slope = count_ > 1 ? (timestep - newer_) / (newer_ - older_) : 0.0F};
  if (skipped || line.same_time) return line;
  older_ = std::exchange(newer_, timestep);
  ++count_;
  return line;
}

DenoisingState::DenoisingState(const Bundle& bundle, const Session* precompute,
                               std::shared_ptr<const Request> request,
                               const PromptEmbeddings& embeddings, Stream& stream, std::int64_t id)
    : bundle_(&bundle), request_(std::move(request)), stream_(&stream), id_(id) {
  if (precompute) precomputed_.emplace(bundle, *precompute, *request_, embeddings, stream);
  if (request_->unconditional) unconditional_row_ = make_row(embeddings, true);
  conditional_row_ = make_row(embeddings, false);
  token_mask_ = on_stream(request_->token_mask);
  allocate_memory();
  begin_step();
}

void DenoisingState::allocate_memory() {
  const auto& weights = request_->weights;
  std::vector<Tensor*> own{&guided.denoised, &guided.previous_denoised, &guided.previous_x};
  if (std::ranges::any_of(weights, &StepWeights::reuse_unconditional))
    own.insert(own.end(), {&guided.newer_unconditional, &guided.older_unconditional});
  if (std::ranges::any_of(weights, &StepWeights::reuse_degraded))
    own.insert(own.end(), {&guided.newer_degraded, &guided.older_degraded});
  if (std::ranges::any_of(weights, &StepWeights::skip)) {
    own.insert(own.end(), {&guided.newer_guided, &guided.older_guided});
    guided.distance = stream_->allocate({images()}, DType::float32);
    distance_ = Tensor({images()}, DType::float32);
  }
  for (Tensor* tensor : own) *tensor = stream_->allocate(request_->latent_shape, DType::float32);
  for (auto* steps :
       {&counts_.skipped_steps, &counts_.unconditional_steps, &counts_.degraded_steps})
    steps->reserve(weights.size());
}

void DenoisingState::begin_step() {
  const StepWeights last =
      std::exchange(weights_, request_->weights[static_cast<std::size_t>(next().point.step)]);
  weights_.skip = weights_.skip && step_distance_ <= request_->skip_tolerance;
  branches_changed_ =
      last.unconditional() != weights_.unconditional() || last.degraded() != weights_.degraded();
}

// Reads how far the line was from the prediction that was just computed.
void DenoisingState::measure_distance(bool after_skipped) {
  stream_->copy(guided.distance, distance_);
  const auto distance = static_cast<double>(std::ranges::max(distance_.floats()));
  step_distance_ = std::max(step_distance_, distance);
  if (after_skipped) counts_.largest_distance = std::max(counts_.largest_distance, distance);
}

void DenoisingState::count() {
  const int step = next().point.step;
  if (!weights_.skip) {
    const std::int64_t base = images() * (weights_.runs_unconditional() ? 2 : 1);
    const std::int64_t degraded = weights_.runs_degraded() ? images() : 0;
    counts_.forked_rows += base + degraded;
    counts_.base_rows += base + (bundle_->layout == Layout::dual ? degraded : 0);
    ++counts_.evaluations;
  }
  if (!begins_step()) return;
  if (weights_.skip) counts_.skipped_steps.push_back(step);
  if (weights_.runs_unconditional()) counts_.unconditional_steps.push_back(step);
  if (weights_.runs_degraded()) counts_.degraded_steps.push_back(step);
}

Tensor DenoisingState::on_stream(const Tensor& host) const {
  Tensor tensor = stream_->allocate(host.shape(), host.dtype());
  stream_->copy(host, tensor);
  return tensor;
}

std::vector<Binding> DenoisingState::make_row(const PromptEmbeddings& embeddings,
                                              bool unconditional) const {
  const Graph& graph = bundle_->transformer();
  const TextConditioning& prompt =
      unconditional && embeddings.negative ? *embeddings.negative : embeddings.positive;
  std::vector<Binding> row;
  if (graph.takes(Role::context))
    row.push_back({Role::context, precomputed_->context(unconditional)});
  if (graph.takes(Role::text)) row.push_back({Role::text, on_stream(prompt.text)});
  if (graph.takes(Role::text_mask)) row.push_back({Role::text_mask, on_stream(prompt.text_mask)});
  if (graph.takes(Role::pooled)) row.push_back({Role::pooled, on_stream(prompt.pooled)});
  if (graph.takes(Role::guidance)) {
    row.push_back({Role::guidance, stream_->allocate({1}, DType::float32)});
    stream_->fill(row.back().tensor, request_->distilled_guidance);
  }
  if (graph.takes(Role::class_label)) {
    Tensor label({1}, DType::int64);
    label.int64s().front() =
        unconditional ? bundle_->classes->null : std::get<ClassLabel>(request_->condition).index;
    row.push_back({Role::class_label, on_stream(label)});
  }
  return row;
}

void DenoisingState::begin(Tensor x, const Tensor& latents) {
  guided.x = std::move(x);
  stream_->copy(latents, guided.x);
}

const Tensor* DenoisingState::modulation(bool unconditional) {
  if (!precomputed_) return nullptr;
  return &precomputed_->modulation(next().point.timestep, unconditional);
}

const Evaluation& DenoisingState::advance() {
  const Evaluation& evaluation = next();
  const StepPoint& point = evaluation.point;
  const bool after_skipped = last_skipped(), runs = !weights_.skip;
  guided.line = guided_timesteps_.next(point.timestep, !runs, begins_step() && branches_changed_);
  if (runs) guided.combine = combine(point.timestep);
  guided.to_denoised = {.velocity = bundle_->prediction_type == PredictionType::velocity,
                        .sigma = point.sigma,
                        .alpha = point.alpha};
  guided.update = evaluation.update;
  stream_->step(guided);
  if (runs && begins_step()) step_distance_ = 0;
  if (runs && guided.distance.defined() && guided.line.compared) measure_distance(after_skipped);
  count();
  ++position_;
  if (!ended() && begins_step()) begin_step();
  return evaluation;
}

Combine DenoisingState::combine(float timestep) {
  return {.lambda = weights_.lambda,
          .w = weights_.w,
          .has_unconditional = weights_.unconditional(),
          .has_degraded = weights_.degraded(),
          .unconditional_delta =
              unconditional_.next(timestep, weights_.unconditional(), weights_.reuse_unconditional),
          .degraded_delta = degraded_.next(timestep, weights_.degraded(), weights_.reuse_degraded)};
}

}  // namespace intaglio
