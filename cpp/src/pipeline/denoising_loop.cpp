#include "pipeline/denoising_loop.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "backend/device_memory.h"
#include "intaglio/error.h"
#include "intaglio/options.h"
#include "pipeline/branch_executor.h"
#include "pipeline/device_executor.h"

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

bool share_inputs(const Request& a, const Request& b) {
  return a.height == b.height && a.width == b.width && a.text_tokens == b.text_tokens &&
         std::ranges::equal(a.channel_mask.floats(), b.channel_mask.floats());
}

LoopMember& DenoisingLoop::add(std::shared_ptr<const Request> request) {
  // The executor remembers whose values its rows hold by this id, also when this call fails, so no
  // id is used twice.
  const std::int64_t id = next_id_++;
  const Stopwatch since_added;
  Stopwatch watch;
  Generation generation;
  pipeline_.check_usable();
  auto loading = pipeline_.load_transformer();  // while the prompt is encoded
  const PromptEmbeddings embeddings = pipeline_.encode(stream_, *request);
  generation.notes = embeddings.notes;
  generation.notes.insert(generation.notes.end(), request->notes.begin(), request->notes.end());
  generation.timings.text = watch.lap();
  if (loading.valid()) loading.get();
  const Bundle& bundle = pipeline_.bundle;
  const TransformerSessions& sessions = pipeline_.transformer();
  const Session* precompute = bundle.conditioning() ? sessions.at("conditioning").get() : nullptr;
  DenoisingState state(bundle, precompute, request, embeddings, stream_, memory_.get(), id);
  const Tensor latents = pipeline_.initial_latents(stream_, *request);

  if (!executor_ || !share_inputs(*shared_with_, *request)) {
    executor_.reset();  // its memory is needed for the next
    if (memory_) {
      executor_ = std::make_unique<DeviceExecutor>(bundle, sessions, shared_inputs(state), stream_,
                                                   memory_);
    } else {
      executor_ = std::make_unique<BranchExecutor>(bundle, sessions, shared_inputs(state),
                                                   max_images_, stream_);
    }
    shared_with_ = request;
  }
  executor_->add(state, latents, request->images == max_images_);
  generation.step_seconds.reserve(static_cast<std::size_t>(request->schedule.steps()));
  LoopMember& member = members_
                           .emplace(id, LoopMember{.state = std::move(state),
                                                   .generation = std::move(generation),
                                                   .since_added = since_added})
                           .first->second;
  list_members();
  return member;
}

bool DenoisingLoop::remove(std::int64_t id) {
  const bool found = members_.erase(id) > 0;
  if (found) executor_->remove(id);
  list_members();
  return found;
}

void DenoisingLoop::list_members() {
  states_.clear();
  for (auto& [id, member] : members_) states_.push_back(&member.state);
  ended_.clear();
  ended_.reserve(members_.size());
}

std::span<LoopMember* const> DenoisingLoop::evaluate() {
  ended_.clear();
  if (members_.empty()) return ended_;
  pipeline_.check_usable();
  Stopwatch watch;
  const double network_before = executor_->network_seconds;
  executor_->run(states_);
  for (auto& [id, member] : members_) {
    executor_->step(member.state);
    if (member.state.last().ended) ended_.push_back(&member);
  }
  if (!ended_.empty()) executor_->wait();
  const double seconds = watch.lap();
  // Nothing that was computed is handed out before the check.
  if (!ended_.empty()) pipeline_.wait_for_check();
  for (auto& [id, member] : members_) {
    member.step_seconds += seconds;
    member.generation.timings.denoise += seconds;
    member.generation.timings.network += executor_->network_seconds - network_before;
  }
  for (LoopMember* member : ended_)
    member->generation.step_seconds.push_back(std::exchange(member->step_seconds, 0));
  return ended_;
}

std::int64_t DenoisingLoop::images() const {
  std::int64_t images = 0;
  for (const auto& [id, member] : members_) images += member.state.images();
  return images;
}

StreamCounts DenoisingLoop::counts() const {
  StreamCounts counts = stream_.counts();
  if (memory_) counts += memory_->counts();
  return counts;
}

void finalize(LoopMember& member, const LoadedPipeline& pipeline, LoopExecutor& executor) {
  const Request& request = *member.state.request();
  const std::vector<StepWeights>& weights = request.weights;
  Generation& generation = member.generation;
  generation.unconditional_steps = steps_that(weights, &StepWeights::runs_unconditional);
  generation.degraded_steps = steps_that(weights, &StepWeights::runs_degraded);
  generation.base_rows = member.state.base_rows();
  generation.forked_rows = member.state.forked_rows();
  generation.latents = executor.latents(member.state).clone();
  check_finite(generation.latents);
  for (std::size_t image = 0; std::cmp_less(image, request.images); ++image)
    generation.texts.push_back(
        png_text(pipeline.bundle, request.asked, image, pipeline.backend->choice));
}

void check_finite(const Tensor& latents) {
  if (std::ranges::all_of(latents.floats(), [](float v) { return std::isfinite(v); })) return;
  throw InputError(
      "the model's prediction became NaN or infinite: lower --cfg-scale and --dg-scale, or "
      "export in float32");
}

}  // namespace intaglio
