#include "intaglio/pipeline.h"

#include <functional>
#include <utility>

#include "bundle/opening.h"
#include "core/stopwatch.h"
#include "intaglio/error.h"
#include "pipeline/validate_inputs.h"
#include "pipeline/pipeline_impl.h"

namespace intaglio {

namespace {

// Calls back where a step ends. One for a run: what a callback sees is made once.
class Reporter {
 public:
  Reporter(Stream& stream, const StepCallback& on_step, const Branches& branches, Tensor x,
           std::function<std::vector<Image>()> preview)
      : stream_(stream), on_step_(on_step), x_(std::move(x)) {
    step_.latents = [this] {
      if (!shown_.defined()) shown_ = x_.device() == Device::cpu ? x_ : on_host(stream_, x_);
      return shown_;
    };
    step_.preview = std::move(preview);
    step_.hidden_states = [this, &branches](int block) {
      return on_host(stream_, branches.told("hidden_states", block));
    };
    step_.gate = [this, &branches](int block) {
      return on_host(stream_, branches.told("gate", block));
    };
  }
  Reporter(const Reporter&) = delete;  // the functions point here

  // After the step that `last` ended; takes back what was written into the latents. False: stop.
  bool report(const Evaluation& last) {
    if (!on_step_) return true;
    step_.step = last.ended->step;
    step_.steps = last.ended->steps;
    step_.sigma = last.ended->sigma;
    step_.timestep = last.point.timestep;
    shown_ = {};
    const bool go_on = on_step_(step_);
    if (shown_.defined()) stream_.copy(shown_, x_);
    return go_on;
  }

 private:
  Stream& stream_;
  const StepCallback& on_step_;
  Tensor x_, shown_;
  Step step_;
};

// Calls `check` where a step ends, before anything is handed out.
void denoise(Stream& stream, Denoising& denoising, Branches& branches, Reporter& reporter,
             const std::function<void()>& check, Generation& generation) {
  Stopwatch watch;
  const int steps = denoising.request()->schedule.steps();
  generation.step_seconds.reserve(static_cast<std::size_t>(steps));
  const StreamCounts before = stream.counts();
  StreamCounts called_back;  // what a callback asked for is not the loop's
  Denoising* const alone[] = {&denoising};
  while (!denoising.ended()) {
    branches.run(alone);
    const Evaluation& evaluation = denoising.advance();
    if (!evaluation.ended) continue;
    stream.wait();
    generation.step_seconds.push_back(watch.lap());
    check();
    const StreamCounts own = stream.counts();
    if (!reporter.report(evaluation)) {
      throw Interrupted("stopped after step " + std::to_string(evaluation.point.step + 1) + " of " +
                        std::to_string(steps));
    }
    called_back += stream.counts() - own;
    watch.lap();  // the callback's time is not the step's
  }
  generation.timings.network = branches.network_seconds;
  generation.loop = stream.counts() - before - called_back;
  denoising.conclude(generation);
}

}  // namespace

Pipeline::Pipeline(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Pipeline::Pipeline(Pipeline&&) noexcept = default;
Pipeline& Pipeline::operator=(Pipeline&&) noexcept = default;
Pipeline::~Pipeline() = default;

Pipeline::Pipeline(Bundle bundle, std::shared_ptr<Backend> backend)
    : Pipeline(std::make_shared<Impl>(std::move(bundle), std::move(backend))) {}

Pipeline Pipeline::open(const std::filesystem::path& bundle, const BackendOptions& backend) {
  OpenedBundle opened = open_bundle(bundle);
  auto used = make_backend(backend, opened.bundle);
  Pipeline pipeline(std::move(opened.bundle), std::move(used));
  pipeline.impl_->check_in_background(std::move(opened.check_large_files));
  return pipeline;
}

const Bundle& Pipeline::bundle() const { return impl_->bundle; }
const Backend& Pipeline::backend() const { return *impl_->backend; }

PromptEmbeds Pipeline::embed(const std::string& prompt,
                             const std::optional<std::string>& negative_prompt) const {
  check_encoders(impl_->bundle);
  const auto stream = backend().make_stream();
  PromptEmbeds embeds;
  embeds.positive = impl_->text().encode(*stream, prompt, "prompt", embeds.notes);
  if (negative_prompt) {
    embeds.negative =
        impl_->text().encode(*stream, *negative_prompt, "negative prompt", embeds.notes);
  }
  impl_->wait_for_check();
  return embeds;
}

Generation Pipeline::generate(const GenerateOptions& options, const StepCallback& on_step) const {
  Stopwatch total;
  const auto request = std::make_shared<const Request>(resolve(bundle(), options));
  const auto stream = backend().make_stream();
  Generation generation;
  Denoising denoising = impl_->start(*stream, request, generation);
  const Tensor latents = impl_->initial_latents(*stream, *request);
  Branches branches(bundle(), impl_->transformer(), denoising, request->images, *stream);
  denoising.begin(branches.latents(), latents);
  branches.prepare(denoising);
  Reporter reporter(*stream, on_step, branches, denoising.guided.x, [&] {
    return impl_->decode(*stream, *request, on_host(*stream, denoising.guided.denoised));
  });
  Stopwatch watch;
  denoise(*stream, denoising, branches, reporter, [this] { impl_->wait_for_check(); }, generation);
  generation.timings.denoise = watch.lap();

  generation.images = impl_->decode(*stream, *request, generation.latents);
  generation.timings.vae = watch.lap();
  generation.timings.total = total.lap();
  return generation;
}

}  // namespace intaglio
