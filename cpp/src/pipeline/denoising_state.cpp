#include "pipeline/denoising_state.h"

#include <algorithm>
#include <utility>

#include "core/step_table.h"
#include "pipeline/token_mask.h"

namespace intaglio {

namespace {

Combine combine(const StepWeights& weights, float timestep, DeltaTimesteps& unconditional,
                DeltaTimesteps& degraded, std::size_t token_size, const CfgRule& rule) {
  return {.lambda = weights.lambda,
          .w = weights.w,
          .has_unconditional = weights.unconditional(),
          .has_degraded = weights.degraded(),
          .unconditional_delta =
              unconditional.next(timestep, weights.unconditional(), weights.reuse_unconditional),
          .degraded_delta = degraded.next(timestep, weights.degraded(), weights.reuse_degraded),
          .token_size = token_size,
          .rule = rule,
          .zero = weights.zero};
}

// What is done to the D of an evaluation; `has_previous` says whether there is one before it.
Correction next_correction(const Request& request, bool zero, bool& has_previous) {
  Correction correction = request.correction;
  if (!has_previous) correction.prev = 0;
  has_previous = has_previous || !zero;
  return correction;
}

// The noise level at which an evaluation leaves x: that of the next one, or none after the last.
NoiseLevel level_after(const Plan& plan, std::size_t position) {
  if (position + 1 == plan.size()) return {};
  const StepPoint& next = plan[position + 1].point;
  return {.alpha = next.alpha, .sigma = next.sigma};
}

float* step_row(Tensor& table, std::size_t position) {
  return table.floats().subspan(position * kStepColumns, kStepColumns).data();
}

}  // namespace

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
                               const PromptEmbeddings& embeddings, const Tensor& references,
                               Stream& stream, DeviceMemory* memory, std::int64_t id)
    : bundle_(&bundle), request_(std::move(request)), stream_(&stream), id_(id) {
  if (references.defined()) references_ = on_stream(references);
  if (precompute) precomputed_.emplace(bundle, *precompute, *request_, embeddings, stream, memory);
  if (request_->unconditional) unconditional_row_ = make_row(embeddings, Branch::unconditional);
  conditional_row_ = make_row(embeddings, Branch::conditional);
  if (request_->transports()) source_row_ = make_row(embeddings, Branch::degraded);
  token_mask_ = on_stream(request_->token_mask);
  if (request_->masks_term) guided.term_mask = on_stream(intaglio::term_mask(*request_));
  for (auto* steps :
       {&counts_.skipped_steps, &counts_.unconditional_steps, &counts_.degraded_steps})
    steps->reserve(request_->weights.size());
  if (request_->adds_noise()) {
    guided.noise = Tensor(request_->latent_shape, DType::float32);
    noise_.emplace(request_->seeds);
    noise_->draw(guided.noise);  // the run starts from this one, or would without given latents
  }
  begin_step();
}

void DenoisingState::begin_step() {
  const StepWeights last =
      std::exchange(weights_, request_->weights[static_cast<std::size_t>(next().point.step)]);
  weights_.skip = weights_.skip && step_distance_ <= request_->skip_tolerance;
  branches_changed_ = last.unconditional() != weights_.unconditional() ||
                      last.degraded() != weights_.degraded() ||
                      last.transports != weights_.transports || last.zero != weights_.zero;
}

void DenoisingState::count() {
  const int step = next().point.step;
  if (!weights_.skip) {
    const std::int64_t base = images() * (weights_.runs_unconditional() ? 2 : 1);
    const bool third = weights_.runs_degraded() || weights_.runs_source();
    const std::int64_t degraded = third ? images() : 0;
    counts_.forked_rows += base + degraded;
    const bool whole = bundle_->layout == Layout::dual || third_branch();
    counts_.base_rows += base + (whole ? degraded : 0);
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
                                              Branch branch) const {
  const Graph& graph = bundle_->transformer();
  const bool unconditional = branch == Branch::unconditional;
  const TextConditioning& prompt = unconditional && embeddings.negative ? *embeddings.negative
                                   : branch == Branch::degraded         ? *embeddings.source
                                                                        : embeddings.positive;
  std::vector<Binding> row;
  if (graph.takes(Role::context)) row.push_back({Role::context, precomputed_->context(branch)});
  if (graph.takes(Role::text)) row.push_back({Role::text, on_stream(prompt.text)});
  if (graph.takes(Role::text_mask)) row.push_back({Role::text_mask, on_stream(prompt.text_mask)});
  if (graph.takes(Role::pooled)) row.push_back({Role::pooled, on_stream(prompt.pooled)});
  if (graph.takes(Role::references)) row.push_back({Role::references, references_});
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

void DenoisingState::begin(Tensor x, const LoopStart& start) {
  std::vector<Tensor*> own{&guided.denoised, &guided.previous_denoised, &guided.previous_x};
  if (request_->reuses_unconditional())
    own.insert(own.end(), {&guided.newer_unconditional, &guided.older_unconditional});
  if (request_->reuses_degraded())
    own.insert(own.end(), {&guided.newer_degraded, &guided.older_degraded});
  if (request_->skips()) {
    own.insert(own.end(), {&guided.newer_guided, &guided.older_guided});
    guided.distance = stream_->allocate({images()}, DType::float32);
  }
  if (request_->corrects()) own.push_back(&guided.older_denoised);
  if (request_->rule.has_momentum()) own.push_back(&guided.momentum);
  if (request_->correction.prev != 0) own.push_back(&guided.previous_guided);
  for (Tensor* tensor : own) *tensor = stream_->allocate(request_->latent_shape, DType::float32);
  guided.x = std::move(x);
  stream_->copy(start.latents, guided.x);
  if (!start.kept.drawn.defined()) return;
  guided.kept = {.drawn = on_stream(start.kept.drawn),
                 .clean = on_stream(start.kept.clean),
                 .noise = on_stream(start.kept.noise)};
}

const Tensor* DenoisingState::modulation(Branch branch) {
  if (!precomputed_) return nullptr;
  return &precomputed_->modulation(next().point.timestep, branch);
}

const Tensor* DenoisingState::modulation_part() {
  return precomputed_ ? &precomputed_->part(next().point.timestep) : nullptr;
}

void DenoisingState::prepare_step() {
  const StepPoint& point = next().point;
  after_skipped_ = last_skipped();
  guided.line =
      guided_timesteps_.next(point.timestep, weights_.skip, begins_step() && branches_changed_);
  guided.combine = weights_.skip ? Combine()
                                 : combine(weights_, point.timestep, unconditional_, degraded_,
                                           token_size(), request_->rule);
  if (!weights_.skip)
    guided.combine.correction = next_correction(*request_, weights_.zero, has_previous_);
  guided.to_denoised = to_denoised(point);
  guided.update = next().update;
  if (noise_) noise_->draw(guided.noise);
  guided.kept.level = level_after(request_->plan, position_);
}

std::size_t DenoisingState::token_size() const {
  return bundle_->cfg_rescale ? static_cast<std::size_t>(request_->latent_shape.back()) : 0;
}

ToDenoised DenoisingState::to_denoised(const StepPoint& point) const {
  return {.velocity = bundle_->prediction_type == PredictionType::velocity,
          .sigma = point.sigma,
          .alpha = point.alpha};
}

Tensor DenoisingState::step_table() const {
  const Plan& plan = request_->plan;
  Tensor table({static_cast<std::int64_t>(plan.size()), kStepColumns}, DType::float32);
  DeltaTimesteps unconditional, degraded;
  bool has_previous = false;
  for (std::size_t i = 0; i < plan.size(); ++i) {
    float* row = step_row(table, i);
    const StepPoint& point = plan[i].point;
    const StepWeights& weights = request_->weights[static_cast<std::size_t>(point.step)];
    row[kTimestep] = point.timestep;
    row[kMaKeep] = weights.ma_keep;
    if (precomputed_) {
      for (const auto& [column, branch] : {std::pair{kUnconditionalRow, Branch::unconditional},
                                           std::pair{kConditionalRow, Branch::conditional},
                                           std::pair{kDegradedRow, Branch::degraded}})
        row[column] = static_cast<float>(precomputed_->row(point.timestep, branch));
    }
    Combine numbers =
        combine(weights, point.timestep, unconditional, degraded, token_size(), request_->rule);
    numbers.correction = next_correction(*request_, weights.zero, has_previous);
    write_step({.combine = numbers,
                .line = {},
                .to_denoised = to_denoised(point),
                .update = plan[i].update,
                .left = level_after(plan, i)},
               row);
  }
  return table;
}

void DenoisingState::write_next(Tensor table) const {
  write_step({.combine = guided.combine,
              .line = guided.line,
              .to_denoised = guided.to_denoised,
              .update = guided.update,
              .left = guided.kept.level},
             step_row(table, position_));
}

bool DenoisingState::measures_distance() const {
  return !weights_.skip && request_->skips() && guided.line.compared;
}

void DenoisingState::advance(double distance) {
  if (!weights_.skip && begins_step()) step_distance_ = 0;
  if (measures_distance()) {
    step_distance_ = std::max(step_distance_, distance);
    if (after_skipped_) counts_.largest_distance = std::max(counts_.largest_distance, distance);
  }
  count();
  ++position_;
  if (!ended() && begins_step()) begin_step();
}

}  // namespace intaglio
