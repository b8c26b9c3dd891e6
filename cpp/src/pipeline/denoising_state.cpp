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

DenoisingState::DenoisingState(const Bundle& bundle, const Session* precompute,
                               std::shared_ptr<const Request> request,
                               const PromptEmbeddings& embeddings, Stream& stream, std::int64_t id)
    : bundle_(&bundle), request_(std::move(request)), stream_(&stream), id_(id) {
  if (precompute) precomputed_.emplace(bundle, *precompute, *request_, embeddings, stream);
  if (request_->unconditional) unconditional_row_ = make_row(embeddings, true);
  conditional_row_ = make_row(embeddings, false);
  token_mask_ = on_stream(request_->token_mask);
  const auto& weights = request_->weights;
  std::vector<Tensor*> own{&guided.denoised, &guided.previous_denoised, &guided.previous_x};
  if (std::ranges::any_of(weights, &StepWeights::reuse_unconditional))
    own.insert(own.end(), {&guided.newer_unconditional, &guided.older_unconditional});
  if (std::ranges::any_of(weights, &StepWeights::reuse_degraded))
    own.insert(own.end(), {&guided.newer_degraded, &guided.older_degraded});
  for (Tensor* tensor : own) *tensor = stream.allocate(request_->latent_shape, DType::float32);
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
  const StepWeights& step = weights();
  guided.combine = {
      .lambda = step.lambda,
      .w = step.w,
      .has_unconditional = step.unconditional(),
      .has_degraded = step.degraded(),
      .unconditional_delta =
          unconditional_.next(point.timestep, step.unconditional(), step.reuse_unconditional),
      .degraded_delta = degraded_.next(point.timestep, step.degraded(), step.reuse_degraded)};
  guided.to_denoised = {.velocity = bundle_->prediction_type == PredictionType::velocity,
                        .sigma = point.sigma,
                        .alpha = point.alpha};
  guided.update = evaluation.update;
  stream_->step(guided);

  const std::int64_t base = images() * (step.runs_unconditional() ? 2 : 1);
  const std::int64_t degraded = step.runs_degraded() ? images() : 0;
  forked_rows_ += base + degraded;
  base_rows_ += base + (bundle_->layout == Layout::dual ? degraded : 0);
  ++position_;
  return evaluation;
}

}  // namespace intaglio
