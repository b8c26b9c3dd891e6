#include "pipeline/denoising.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "intaglio/error.h"

namespace intaglio {

namespace {

std::vector<int> steps_that(const std::vector<StepWeights>& weights,
                            bool (StepWeights::*run)() const) {
  std::vector<int> steps;
  for (std::size_t i = 0; i < weights.size(); ++i)
    if ((weights[i].*run)()) steps.push_back(static_cast<int>(i));
  return steps;
}

}  // namespace

Delta KeptTimesteps::next(float timestep, bool has_weight, bool reused) {
  if (has_weight && !reused) older_ = std::exchange(newer_, timestep);
  count_ = has_weight ? count_ + (reused ? 0 : 1) : 0;
  if (!reused) return {};
  const bool line = count_ > 1 && newer_ != older_;
  return {true, line ? (timestep - newer_) / (newer_ - older_) : 0.0F};
}

Denoising::Denoising(const Bundle& bundle, const Session* conditioning,
                     std::shared_ptr<const Request> request, const PromptEmbeds& embeds,
                     Stream& stream, std::int64_t id)
    : bundle_(&bundle), request_(std::move(request)), stream_(&stream), id_(id) {
  if (conditioning) conditioning_.emplace(bundle, *conditioning, *request_, embeds, stream);
  if (request_->unconditional) unconditional_row_ = make_row(embeds, true);
  conditional_row_ = make_row(embeds, false);
  suppression_ = on_stream(request_->token_mask);
  const auto& weights = request_->weights;
  std::vector<Tensor*> own{&guided.denoised, &guided.first, &guided.second};
  if (std::ranges::any_of(weights, &StepWeights::reuse_unconditional))
    own.insert(own.end(), {&guided.newer_unconditional, &guided.older_unconditional});
  if (std::ranges::any_of(weights, &StepWeights::reuse_degraded))
    own.insert(own.end(), {&guided.newer_degraded, &guided.older_degraded});
  for (Tensor* tensor : own) *tensor = stream.allocate(request_->latent_shape, DType::float32);
}

Tensor Denoising::on_stream(const Tensor& host) const {
  Tensor tensor = stream_->allocate(host.shape(), host.dtype());
  stream_->copy(host, tensor);
  return tensor;
}

std::vector<Binding> Denoising::make_row(const PromptEmbeds& embeds, bool unconditional) const {
  const Graph& graph = bundle_->transformer();
  const PromptEmbedding& prompt =
      unconditional && embeds.negative ? *embeds.negative : embeds.positive;
  std::vector<Binding> row;
  if (graph.takes("context")) row.push_back({"context", conditioning_->context(unconditional)});
  if (graph.takes("text")) row.push_back({"text", on_stream(prompt.text)});
  if (graph.takes("text_mask")) row.push_back({"text_mask", on_stream(prompt.text_mask)});
  if (graph.takes("pooled")) row.push_back({"pooled", on_stream(prompt.pooled)});
  if (graph.takes("guidance")) {
    row.push_back({"guidance", stream_->allocate({1}, DType::float32)});
    stream_->fill(row.back().tensor, request_->distilled_guidance);
  }
  if (graph.takes("class")) {
    Tensor label({1}, DType::int64);
    label.int64s().front() = unconditional ? bundle_->classes->null : std::get<ClassLabel>(request_->condition).index;
    row.push_back({"class", on_stream(label)});
  }
  return row;
}

void Denoising::begin(Tensor x, const Tensor& latents) {
  guided.x = std::move(x);
  stream_->copy(latents, guided.x);
}

const Tensor* Denoising::modulation(bool unconditional) {
  if (!conditioning_) return nullptr;
  return &conditioning_->modulation(next().point.timestep, unconditional);
}

const Evaluation& Denoising::advance() {
  const Evaluation& evaluation = next();
  const StepPoint& point = evaluation.point;
  const StepWeights& step = weights();
  guided.combine = {
      step.lambda,
      step.w,
      step.unconditional(),
      step.degraded(),
      unconditional_.next(point.timestep, step.unconditional(), step.reuse_unconditional),
      degraded_.next(point.timestep, step.degraded(), step.reuse_degraded)};
  guided.to_denoised = {predicts_velocity(bundle_->prediction_type), point.sigma, point.alpha};
  guided.update = evaluation.update;
  stream_->step(guided);

  const std::int64_t base = images() * (step.runs_unconditional() ? 2 : 1);
  const std::int64_t degraded = step.runs_degraded() ? images() : 0;
  forked_rows_ += base + degraded;
  base_rows_ += base + (bundle_->layout == "dual" ? degraded : 0);
  ++place_;
  return evaluation;
}

void Denoising::conclude(Generation& generation) const {
  generation.unconditional_steps = steps_that(request_->weights, &StepWeights::runs_unconditional);
  generation.degraded_steps = steps_that(request_->weights, &StepWeights::runs_degraded);
  generation.base_rows = base_rows_;
  generation.forked_rows = forked_rows_;
  generation.latents = on_host(*stream_, guided.x);
  check_finite(generation.latents);
}

void check_finite(const Tensor& latents) {
  if (std::ranges::all_of(latents.floats(), [](float v) { return std::isfinite(v); })) return;
  throw InputError(
      "the model's prediction became NaN or infinite: lower --cfg-scale and --dg-scale, or "
      "export in float32");
}

Tensor on_host(Stream& stream, const Tensor& tensor) {
  Tensor host(tensor.shape(), tensor.dtype());
  stream.copy(tensor, host);
  return host;
}

}  // namespace intaglio
