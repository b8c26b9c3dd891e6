#include "pipeline/denoising_state.h"

#include <algorithm>
#include <utility>

#include "core/step_table.h"

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
                               const PromptEmbeddings& embeddings, Stream& stream,
                               DeviceMemory* memory, std::int64_t id)
    : bundle_(&bundle), request_(std::move(request)), stream_(&stream), id_(id) {
  if (precompute) precomputed_.emplace(bundle, *precompute, *request_, embeddings, stream, memory);
  if (request_->unconditional) unconditional_row_ = make_row(embeddings, true);
  conditional_row_ = make_row(embeddings, false);
  token_mask_ = on_stream(request_->token_mask);
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
  std::vector<Tensor*> own{&guided.denoised, &guided.previous_denoised, &guided.previous_x};
  if (request_->reuses_unconditional())
    own.insert(own.end(), {&guided.newer_unconditional, &guided.older_unconditional});
  if (request_->reuses_degraded())
    own.insert(own.end(), {&guided.newer_degraded, &guided.older_degraded});
  for (Tensor* tensor : own) *tensor = stream_->allocate(request_->latent_shape, DType::float32);
  guided.x = std::move(x);
  stream_->copy(latents, guided.x);
}

const Tensor* DenoisingState::modulation(bool unconditional) {
  if (!precomputed_) return nullptr;
  return &precomputed_->modulation(next().point.timestep, unconditional);
}

const Tensor* DenoisingState::modulation_part() {
  return precomputed_ ? &precomputed_->part(next().point.timestep) : nullptr;
}

Combine DenoisingState::combine(std::size_t position, DeltaTimesteps& unconditional,
                                DeltaTimesteps& degraded) const {
  const StepPoint& point = request_->plan[position].point;
  const StepWeights& step = request_->weights[static_cast<std::size_t>(point.step)];
  return {.lambda = step.lambda,
          .w = step.w,
          .has_unconditional = step.unconditional(),
          .has_degraded = step.degraded(),
          .unconditional_delta =
              unconditional.next(point.timestep, step.unconditional(), step.reuse_unconditional),
          .degraded_delta = degraded.next(point.timestep, step.degraded(), step.reuse_degraded)};
}

ToDenoised DenoisingState::to_denoised(std::size_t position) const {
  const StepPoint& point = request_->plan[position].point;
  return {.velocity = bundle_->prediction_type == PredictionType::velocity,
          .sigma = point.sigma,
          .alpha = point.alpha};
}

void DenoisingState::prepare_step() {
  guided.combine = combine(position_, unconditional_, degraded_);
  guided.to_denoised = to_denoised(position_);
  guided.update = next().update;
}

Tensor DenoisingState::step_table() const {
  const Plan& plan = request_->plan;
  Tensor table({static_cast<std::int64_t>(plan.size()), kStepColumns}, DType::float32);
  DeltaTimesteps unconditional, degraded;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    float* row = table.floats().subspan(i * kStepColumns, kStepColumns).data();
    const StepPoint& point = plan[i].point;
    row[kTimestep] = point.timestep;
    row[kMaKeep] = request_->weights[static_cast<std::size_t>(point.step)].ma_keep;
    if (precomputed_) {
      row[kUnconditionalRow] = static_cast<float>(precomputed_->row(point.timestep, true));
      row[kConditionalRow] = static_cast<float>(precomputed_->row(point.timestep, false));
    }
    write_step(combine(i, unconditional, degraded), to_denoised(i), plan[i].update, row);
  }
  return table;
}

void DenoisingState::advance() {
  const StepWeights& step = weights();
  const std::int64_t base = images() * (step.runs_unconditional() ? 2 : 1);
  const std::int64_t degraded = step.runs_degraded() ? images() : 0;
  forked_rows_ += base + degraded;
  base_rows_ += base + (bundle_->layout == Layout::dual ? degraded : 0);
  ++position_;
}

}  // namespace intaglio
