#include "intaglio/batch.h"

#include <map>
#include <string>
#include <utility>

#include "core/stopwatch.h"
#include "intaglio/options.h"
#include "pipeline/pipeline_impl.h"

namespace intaglio {

namespace {

// What the transformer takes once for all rows.
struct Shared {
  int height = 0, width = 0;
  std::int64_t text_tokens = 0;
  std::vector<float> mask;
  bool operator==(const Shared&) const = default;
};

Shared shared_of(const Request& request) {
  const auto mask = request.channel_mask.floats();
  return {request.height, request.width, request.text_tokens, {mask.begin(), mask.end()}};
}

std::string size_text(const Shared& shared) {
  return std::to_string(shared.width) + "x" + std::to_string(shared.height) + " pixels";
}

std::string tokens_text(const Shared& shared) {
  return std::to_string(shared.text_tokens) + " tokens";
}

// Why they cannot run together.
std::string difference(const Shared& running, const Shared& asked) {
  const std::string way_out = ": wait until it is empty, or use another batch";
  if (running.height != asked.height || running.width != asked.width) {
    return "--height and --width ask for " + size_text(asked) + " where the batch draws " +
           size_text(running) + way_out;
  }
  if (running.text_tokens != asked.text_tokens) {
    return "prompt_embeds has " + tokens_text(asked) + " where the batch has " +
           tokens_text(running) + way_out;
  }
  return "--ma-channels are others than those that the batch suppresses" + way_out;
}

struct Member {
  Denoising denoising;
  Stopwatch since_added;
  Generation generation;
  double step_seconds = 0;  // of the evaluations since its last step
  bool out = false;
};

}  // namespace

class Batch::Impl {
 public:
  Impl(std::shared_ptr<Pipeline::Impl> pipeline, std::int64_t max_images)
      : pipeline_(std::move(pipeline)),
        max_images_(max_images),
        stream_(pipeline_->backend->make_stream()) {}

  std::int64_t add(const GenerateOptions& options);
  bool accepts(const GenerateOptions& options) const;
  void remove(std::int64_t id);
  std::vector<BatchStep> step();
  std::size_t size() const { return members_.size(); }
  std::int64_t images() const;

 private:
  // Why a request cannot join; empty where it can.
  std::string refusal(const Request& request, const Shared& shared) const;
  BatchStep report(Member& member, const Evaluation& last);
  void conclude(Member& member, BatchStep& step);

  std::shared_ptr<Pipeline::Impl> pipeline_;
  std::int64_t max_images_;
  std::unique_ptr<Stream> stream_;
  std::int64_t next_id_ = 0;
  Shared shared_;  // what branches_ are for
  std::unique_ptr<Branches> branches_;
  std::map<std::int64_t, Member> members_;  // by id
};

std::int64_t Batch::Impl::images() const {
  std::int64_t images = 0;
  for (const auto& [id, member] : members_) images += member.denoising.images();
  return images;
}

std::string Batch::Impl::refusal(const Request& request, const Shared& shared) const {
  if (!members_.empty() && shared != shared_) return difference(shared_, shared);
  if (!members_.empty() && pipeline_->bundle.quantized == "int8-dynamic") {
    // Its products quantise activations by the tensor, so that rows change each other.
    return "a batch of an int8-dynamic bundle runs one request at a time: wait until it is empty";
  }
  const std::int64_t room = max_images_ - images();
  if (request.images <= room) return {};
  return "--batch or --seeds ask for " + std::to_string(request.images) +
         " images where the batch has room for " + std::to_string(room) + " of " +
         std::to_string(max_images_) +
         (request.images > max_images_ ? ": ask for fewer" : ": wait, or ask for fewer");
}

bool Batch::Impl::accepts(const GenerateOptions& options) const {
  const Request request = resolve(pipeline_->bundle, options);
  return refusal(request, shared_of(request)).empty();
}

std::int64_t Batch::Impl::add(const GenerateOptions& options) {
  Stopwatch since_added;
  const Bundle& bundle = pipeline_->bundle;
  const auto request = std::make_shared<const Request>(resolve(bundle, options));
  Shared shared = shared_of(*request);
  if (const std::string why = refusal(*request, shared); !why.empty()) throw UsageError(why);
  const std::int64_t id = next_id_++;
  Generation generation;
  Denoising denoising = pipeline_->start(*stream_, request, generation, id);
  denoising.begin(stream_->allocate(request->latent_shape, DType::float32),
                  pipeline_->initial_latents(*stream_, *request));
  if (!branches_ || shared != shared_) {
    branches_.reset();  // its memory is needed for the next
    branches_ = std::make_unique<Branches>(bundle, pipeline_->transformer(), denoising, max_images_,
                                           *stream_);
    shared_ = std::move(shared);
  }
  members_.emplace(
      id, Member{std::move(denoising), since_added, std::move(generation)});
  return id;
}

void Batch::Impl::remove(std::int64_t id) {
  if (members_.erase(id) == 0)
    throw UsageError("the batch has no request " + std::to_string(id) +
                     ": give the id of one that has not ended");
}

std::vector<BatchStep> Batch::Impl::step() {
  if (members_.empty()) return {};
  Stopwatch watch;
  const double network = branches_->network_seconds;
  std::vector<Denoising*> running;
  for (auto& [id, member] : members_) running.push_back(&member.denoising);
  branches_->run(running);
  std::vector<const Evaluation*> evaluations;
  for (Denoising* denoising : running) evaluations.push_back(&denoising->advance());
  stream_->wait();
  const double seconds = watch.lap();
  pipeline_->wait_for_check();

  std::vector<BatchStep> steps;
  auto evaluation = evaluations.begin();
  for (auto& [id, member] : members_) {
    member.step_seconds += seconds;
    member.generation.timings.network += branches_->network_seconds - network;
    const Evaluation& last = **evaluation++;
    if (last.ended) steps.push_back(report(member, last));
  }
  std::erase_if(members_, [](const auto& entry) { return entry.second.out; });
  return steps;
}

BatchStep Batch::Impl::report(Member& member, const Evaluation& last) {
  BatchStep step;
  step.id = member.denoising.id();
  step.step = last.ended->step;
  step.steps = last.ended->steps;
  step.sigma = last.ended->sigma;
  step.timestep = last.point.timestep;
  step.finish = []() -> Generation {
    throw UsageError("finish() has the images of a request that is done: wait for its last step");
  };
  member.generation.timings.denoise += member.step_seconds;
  member.generation.step_seconds.push_back(std::exchange(member.step_seconds, 0));
  try {
    // Once the model has seen a number that is none, all that follows is.
    const Tensor denoised = on_host(*stream_, member.denoising.guided.denoised);
    check_finite(denoised);
    step.preview = [pipeline = pipeline_, request = member.denoising.request(), denoised] {
      return pipeline->decode(*pipeline->backend->make_stream(), *request, denoised);
    };
    if (member.denoising.ended()) conclude(member, step);
  } catch (const Error& error) {
    step.error = error;
    step.preview = [error]() -> std::vector<Image> { throw error; };
    step.finish = [error]() -> Generation { throw error; };
    member.out = true;
  }
  return step;
}

void Batch::Impl::conclude(Member& member, BatchStep& step) {
  member.denoising.conclude(member.generation);
  step.finish = [pipeline = pipeline_, request = member.denoising.request(),
                 generation = std::move(member.generation),
                 total = member.since_added] {
    Generation finished = generation;
    Stopwatch watch, since_added = total;
    finished.images =
        pipeline->decode(*pipeline->backend->make_stream(), *request, generation.latents);
    finished.timings.vae = watch.lap();
    finished.timings.total = since_added.lap();
    return finished;
  };
  step.done = member.out = true;
}

Batch::Batch(const Pipeline& pipeline, std::int64_t max_images) {
  if (max_images < 1) {
    throw UsageError("max_images " + std::to_string(max_images) + " is no room: give 1 or more");
  }
  impl_ = std::make_unique<Impl>(pipeline.impl_, max_images);
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

}  // namespace intaglio
