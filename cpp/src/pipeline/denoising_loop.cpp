#include "pipeline/denoising_loop.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <future>
#include <utility>

#include "backend/device_memory.h"
#include "intaglio/error.h"
#include "intaglio/options.h"
#include "pipeline/branch_executor.h"
#include "pipeline/device_executor.h"

namespace intaglio {

namespace {

// The arithmetic of one member failed.
struct StepFailure {
  std::exception_ptr error;
};

}  // namespace

bool share_inputs(const Request& a, const Request& b) {
  return a.height == b.height && a.width == b.width && a.text_tokens == b.text_tokens &&
         a.reference_grids == b.reference_grids && a.skips_layers() == b.skips_layers() &&
         a.transports() == b.transports() &&
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
  std::future<void> loading;
  if (!request->memory.in_turn) loading = pipeline_.load_transformer();  // beside the encoders
  const PromptEmbeddings embeddings = pipeline_.encode(*request);
  generation.notes = embeddings.notes;
  generation.notes.insert(generation.notes.end(), request->notes.begin(), request->notes.end());
  generation.timings.text = watch.lap();
  if (loading.valid()) loading.get();
  const LoopStart start = pipeline_.start(*request);
  const Bundle& bundle = pipeline_.bundle;
  sessions_ = pipeline_.transformer();
  const TransformerSessions& sessions = *sessions_;
  const Session* precompute = bundle.conditioning() ? sessions.at("conditioning").get() : nullptr;
  DenoisingState state(bundle, precompute, request, embeddings, start.references, stream_,
                       memory_.get(), id);

  if (!executor_ || !share_inputs(*shared_with_, *request)) {
    executor_.reset();  // its memory is needed for the next
    if (memory_) {
      executor_ = std::make_unique<DeviceExecutor>(bundle, sessions, shared_inputs(state),
                                                   max_images_, stream_, memory_);
    } else {
      executor_ = std::make_unique<BranchExecutor>(bundle, sessions, shared_inputs(state),
                                                   max_images_, stream_);
    }
    shared_with_ = request;
  }
  executor_->add(state, start, request->images == max_images_);
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

void DenoisingLoop::unload() {
  assert(members_.empty());
  executor_.reset();
  sessions_.reset();
  pipeline_.let_go();
}

void DenoisingLoop::list_members() {
  states_.clear();
  for (auto& [id, member] : members_) states_.push_back(&member.state);
}

void DenoisingLoop::evaluate(const OnStep& on_step) {
  if (members_.empty()) return;
  pipeline_.check_usable();
  Stopwatch watch;
  const double network_before = executor_->network_seconds;
  executor_->run(states_);
  const double network = executor_->network_seconds - network_before, seconds = watch.lap();
  for (auto& [id, member] : members_) {
    member.generation.timings.network += network;
    try {
      bool skips = advance(member, seconds, on_step);
      while (skips) skips = advance(member, 0, on_step);
    } catch (const StepFailure& failure) {
      member.failure = failure.error;  // the others go on
      on_step(member);
    }
  }
}

// Ends the member's next evaluation, whose rows ran for so many seconds. Returns whether the one
// after it is skipped.
bool DenoisingLoop::advance(LoopMember& member, double seconds, const OnStep& on_step) {
  Stopwatch watch;
  try {
    executor_->step(member.state);
  } catch (const Error&) {
    throw StepFailure{std::current_exception()};
  }
  const bool ended = member.state.last().ended.has_value();
  if (ended) executor_->wait();
  seconds += watch.lap();
  member.step_seconds += seconds;
  member.generation.timings.denoise += seconds;
  if (ended) {
    // Nothing that was computed is handed out before the check.
    pipeline_.wait_for_check();
    member.generation.step_seconds.push_back(std::exchange(member.step_seconds, 0));
    if (!on_step(member)) return false;
  }
  return !member.state.ended() && member.state.weights().skip;
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
  const RunCounts& counts = member.state.counts();
  Generation& generation = member.generation;
  generation.base_rows = counts.base_rows;
  generation.forked_rows = counts.forked_rows;
  generation.evaluations = counts.evaluations;
  generation.skipped_steps = counts.skipped_steps;
  generation.unconditional_steps = counts.unconditional_steps;
  generation.degraded_steps = counts.degraded_steps;
  generation.largest_distance = counts.largest_distance;
  generation.latents = executor.latents(member.state).clone();
  check_finite(generation.latents);
  for (std::int64_t image = 0; image < request.images; ++image)
    generation.texts.push_back(png_text(pipeline.bundle, request.asked,
                                        static_cast<std::size_t>(request.first_image + image),
                                        pipeline.backend->choice));
}

void check_finite(const Tensor& latents) {
  if (std::ranges::all_of(latents.floats(), [](float v) { return std::isfinite(v); })) return;
  throw InputError(
      "the model's prediction became NaN or infinite: lower --cfg-scale and --dg-scale, or "
      "export in float32");
}

}  // namespace intaglio
