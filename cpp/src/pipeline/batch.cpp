#include "intaglio/batch.h"

#include <string>
#include <utility>
#include <vector>

#include "core/stopwatch.h"
#include "pipeline/denoising_loop.h"
#include "pipeline/loaded_pipeline.h"

namespace intaglio {

namespace {

std::string size_text(const Request& request) {
  return std::to_string(request.width) + "x" + std::to_string(request.height) + " pixels";
}

std::string tokens_text(const Request& request) {
  return std::to_string(request.text_tokens) + " tokens";
}

// Says why two requests cannot run together.
std::string difference(const Request& running, const Request& asked) {
  const std::string way_out = ": wait until it is empty, or use another batch";
  if (running.height != asked.height || running.width != asked.width) {
    return "--height and --width ask for " + size_text(asked) + " where the batch draws " +
           size_text(running) + way_out;
  }
  if (running.text_tokens != asked.text_tokens) {
    return "prompt_embeds has " + tokens_text(asked) + " where the batch has " +
           tokens_text(running) + way_out;
  }
  if (running.reference_grids != asked.reference_grids)
    return "--image gives references of other sizes than those of the batch" + way_out;
  if (running.skips_layers() != asked.skips_layers())
    return "--slg-layers or --slg-share is given to some requests of the batch only" + way_out;
  if (running.transports() != asked.transports())
    return "--transport-from is given to some requests of the batch only" + way_out;
  return "--ma-channels differ from the channels that the batch suppresses" + way_out;
}

}  // namespace

class Batch::Impl {
 public:
  Impl(std::shared_ptr<LoadedPipeline> pipeline, std::int64_t max_images)
      : pipeline_(std::move(pipeline)),
        max_images_(max_images),
        stream_(pipeline_->backend->make_stream()),
        loop_(*pipeline_, *stream_, max_images) {}

  std::int64_t add(const GenerateOptions& options);
  bool accepts(const GenerateOptions& options) const;
  void remove(std::int64_t id);
  std::vector<BatchStep> step();
  std::size_t size() const { return loop_.size(); }
  std::int64_t images() const { return loop_.images(); }
  bool in_turn() const { return size() > 0 && loop_.shared_with().memory.in_turn; }

 private:
  // Why a request cannot join; empty where it can.
  std::string refusal(const Request& request) const;
  BatchStep report(LoopMember& member);
  void finish(LoopMember& member, BatchStep& step);
  static void decode_now(BatchStep& step);

  std::shared_ptr<LoadedPipeline> pipeline_;
  std::int64_t max_images_;
  std::unique_ptr<Stream> stream_;
  DenoisingLoop loop_;
};

std::string Batch::Impl::refusal(const Request& request) const {
  if (size() > 0 && !share_inputs(loop_.shared_with(), request))
    return difference(loop_.shared_with(), request);
  if (in_turn() || (size() > 0 && request.memory.in_turn)) {
    return "--max-memory has room for one request at a time, whose parts are loaded in turn: wait "
           "until the batch is empty";
  }
  if (size() > 0 && !pipeline_->bundle.has_independent_rows()) {
    return "an int8-dynamic bundle of an older version runs one request at a time: wait until the "
           "batch is empty, or export the bundle again";
  }
  const std::int64_t room = max_images_ - images();
  if (request.images <= room) return {};
  return "--batch or --seeds ask for " + std::to_string(request.images) +
         " images where the batch has room for " + std::to_string(room) + " of " +
         std::to_string(max_images_) +
         (request.images > max_images_ ? ": ask for fewer" : ": wait, or ask for fewer");
}

bool Batch::Impl::accepts(const GenerateOptions& options) const {
  return refusal(pipeline_->plan(options, max_images_)).empty();
}

std::int64_t Batch::Impl::add(const GenerateOptions& options) {
  auto request = std::make_shared<const Request>(pipeline_->plan(options, max_images_));
  if (const std::string why = refusal(*request); !why.empty()) throw UsageError(why);
  if (request->memory.in_turn) loop_.unload();
  return loop_.add(std::move(request)).state.id();
}

void Batch::Impl::remove(std::int64_t id) {
  if (!loop_.remove(id))
    throw UsageError("the batch has no request " + std::to_string(id) +
                     ": give the id of one that has not ended");
}

std::vector<BatchStep> Batch::Impl::step() {
  std::vector<BatchStep> steps;
  const bool was_in_turn = in_turn();
  loop_.evaluate([&](LoopMember& member) {
    steps.push_back(report(member));
    return !steps.back().error;
  });
  for (const BatchStep& step : steps)
    if (step.done || step.error) loop_.remove(step.id);
  if (was_in_turn && size() == 0) {
    loop_.unload();
    for (BatchStep& step : steps)
      if (step.done) decode_now(step);
  }
  return steps;
}

BatchStep Batch::Impl::report(LoopMember& member) {
  const Evaluation& shown = member.failure ? member.state.next() : member.state.last();
  const StepPoint began = shown.ended.value_or(shown.point);
  BatchStep step;
  step.id = member.state.id();
  step.step = began.step;
  step.steps = began.steps;
  step.sigma = began.sigma;
  step.timestep = shown.point.timestep;
  step.skipped = member.state.last_skipped();
  step.finish = []() -> Generation {
    throw UsageError("finish() has the images of a request that is done: wait for its last step");
  };
  try {
    if (member.failure) std::rethrow_exception(member.failure);
    const std::function<Tensor()> denoised = loop_.executor().denoised(member.state);
    // Once the model has seen a NaN or infinity, everything that follows is one. On a device the
    // last step shows it, since nothing is copied from there before somebody asks.
    if (loop_.on_host()) check_finite(denoised());
    step.preview = [pipeline = pipeline_, request = member.state.request(), denoised] {
      return pipeline->preview(*request, denoised());
    };
    if (member.state.ended()) finish(member, step);
  } catch (const Error& error) {
    step.error = error;
    step.preview = [error]() -> std::vector<Image> { throw error; };
    step.finish = [error]() -> Generation { throw error; };
  }
  return step;
}

void Batch::Impl::finish(LoopMember& member, BatchStep& step) {
  finalize(member, *pipeline_, loop_.executor());
  step.finish = [pipeline = pipeline_, request = member.state.request(),
                 generation = std::move(member.generation), total = member.since_added] {
    Generation finished = generation;
    Stopwatch watch, since_added = total;
    finished.images = pipeline->decode(*request, generation.latents);
    finished.timings.vae = watch.lap();
    finished.timings.total = since_added.lap();
    return finished;
  };
  step.done = true;
}

// Before another request takes the memory that the VAE needs.
void Batch::Impl::decode_now(BatchStep& step) {
  try {
    step.finish = [finished = step.finish()] { return finished; };
  } catch (const Error& error) {
    step.finish = [error]() -> Generation { throw error; };
  }
}

Batch::Batch(const Pipeline& pipeline, std::int64_t max_images) {
  if (max_images < 1) {
    throw UsageError("max_images " + std::to_string(max_images) +
                     " leaves no room for a request: give 1 or more");
  }
  impl_ = std::make_unique<Impl>(pipeline.loaded_, max_images);
}
Batch::Batch(Batch&&) noexcept = default;
Batch& Batch::operator=(Batch&&) noexcept = default;
Batch::~Batch() = default;

std::int64_t Batch::add(const GenerateOptions& options) { return impl_->add(options); }
bool Batch::accepts(const GenerateOptions& options) const { return impl_->accepts(options); }
void Batch::remove(std::int64_t id) { impl_->remove(id); }
std::vector<BatchStep> Batch::step() { return impl_->step(); }
std::size_t Batch::size() const { return impl_->size(); }
std::int64_t Batch::images() const { return impl_->images(); }
bool Batch::in_turn() const { return impl_->in_turn(); }

}  // namespace intaglio
