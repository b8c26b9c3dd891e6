#include "intaglio/pipeline.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <future>
#include <mutex>

#include "bundle/opening.h"
#include "core/guided_step.h"
#include "core/stopwatch.h"
#include "intaglio/error.h"
#include "intaglio/rng.h"
#include "pipeline/branches.h"
#include "pipeline/condition.h"
#include "pipeline/packing.h"
#include "pipeline/request.h"
#include "pipeline/text.h"
#include "pipeline/vae.h"

namespace intaglio {

namespace {

// Loaded at first use: a run waits for no graph that it does not need.
template <typename T>
class Lazy {
 public:
  template <typename Make>
  const T& get(Make&& make) {
    const std::scoped_lock lock(mutex_);
    if (!value_) value_ = make();
    return *value_;
  }
  bool loaded() const {
    const std::scoped_lock lock(mutex_);
    return value_ != nullptr;
  }

 private:
  mutable std::mutex mutex_;
  std::unique_ptr<T> value_;
};

Tensor on_host(Stream& stream, const Tensor& tensor) {
  Tensor host(tensor.shape(), tensor.dtype());
  stream.copy(tensor, host);
  return host;
}

// A step over the branches' latents and predictions, with memory of its own for the rest.
GuidedStep buffers(Stream& stream, const Branches& branches,
                   const std::vector<StepWeights>& weights) {
  GuidedStep step;
  step.x = branches.latents();
  step.conditional = branches.conditional();
  step.unconditional = branches.unconditional();
  step.degraded = branches.degraded();
  std::vector<Tensor*> own{&step.denoised, &step.first, &step.second};
  if (std::ranges::any_of(weights, &StepWeights::reuse_unconditional))
    own.insert(own.end(), {&step.newer_unconditional, &step.older_unconditional});
  if (std::ranges::any_of(weights, &StepWeights::reuse_degraded))
    own.insert(own.end(), {&step.newer_degraded, &step.older_degraded});
  for (Tensor* tensor : own) *tensor = stream.allocate(step.x.shape(), DType::float32);
  return step;
}

// The timesteps of a branch's evaluations whose differences from D_c are kept.
class KeptTimesteps {
 public:
  // To be called for every evaluation: what it does about the branch.
  Delta next(float timestep, bool has_weight, bool reused) {
    if (has_weight && !reused) older_ = std::exchange(newer_, timestep);
    count_ = has_weight ? count_ + (reused ? 0 : 1) : 0;
    if (!reused) return {};
    const bool line = count_ > 1 && newer_ != older_;
    return {true, line ? (timestep - newer_) / (newer_ - older_) : 0.0F};
  }

 private:
  int count_ = 0;  // that ran the branch since it last had no weight
  float newer_ = 0, older_ = 0;
};

std::vector<int> steps_that(const std::vector<StepWeights>& weights,
                            bool (StepWeights::*run)() const) {
  std::vector<int> steps;
  for (std::size_t i = 0; i < weights.size(); ++i)
    if ((weights[i].*run)()) steps.push_back(static_cast<int>(i));
  return steps;
}

// Calls back where a step ends. One for a run: what a callback sees is made once.
class Reporter {
 public:
  Reporter(Stream& stream, const StepCallback& on_step, const Branches& branches,
           std::function<std::vector<Image>()> preview)
      : stream_(stream), on_step_(on_step), x_(branches.latents()) {
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

}  // namespace

class Pipeline::Impl {
 public:
  Impl(Bundle opened, std::shared_ptr<Backend> used)
      : bundle(std::move(opened)), backend(std::move(used)) {}

  // Hash large files beside the work that needs no verdict yet.
  void check_in_background(std::function<void()> check) {
    checked_ = std::async(std::launch::async, std::move(check)).share();
  }
  // Has to be called before anything that was computed is handed out. Throws what the check threw.
  void wait_for_check() const {
    if (checked_.valid()) checked_.get();
  }

  const TextStage& text() {
    return text_.get([&] { return std::make_unique<TextStage>(bundle, *backend); });
  }
  const TransformerSessions& transformer() {
    return transformer_.get(
        [&] { return std::make_unique<TransformerSessions>(load_transformer(bundle, *backend)); });
  }
  bool has_transformer() const { return transformer_.loaded(); }
  const VaeDecoder& vae_decoder() {
    return vae_decoder_.get([&] { return std::make_unique<VaeDecoder>(bundle, *backend); });
  }
  const VaeEncoder& vae_encoder() {
    return vae_encoder_.get([&] { return std::make_unique<VaeEncoder>(bundle, *backend); });
  }

  // What the call gave, or what its prompts become.
  PromptEmbeds embeddings(Stream& stream, const Request& request, const GenerateOptions& options);
  // As the loop has them.
  Tensor initial_latents(Stream& stream, const Request& request, const GenerateOptions& options);
  // Leaves the sample in the latents of `branches`.
  void denoise(Stream& stream, const Request& request, Branches& branches,
               const GenerateOptions& options, const StepCallback& on_step, Generation& generation);
  std::vector<Image> decode(Stream& stream, const Request& request, const Tensor& latents,
                            int tile);

  Bundle bundle;
  std::shared_ptr<Backend> backend;

 private:
  Lazy<TextStage> text_;
  Lazy<TransformerSessions> transformer_;
  Lazy<VaeDecoder> vae_decoder_;
  Lazy<VaeEncoder> vae_encoder_;
  std::shared_future<void> checked_;
};

PromptEmbeds Pipeline::Impl::embeddings(Stream& stream, const Request& request,
                                        const GenerateOptions& options) {
  if (!bundle.prompt) return {};
  if (options.prompt_embeds) return *options.prompt_embeds;
  PromptEmbeds embeds;
  embeds.positive = text().encode(stream, *options.prompt, "prompt", embeds.notes);
  if (request.unconditional)
    embeds.negative =
        text().encode(stream, options.negative_prompt, "negative prompt", embeds.notes);
  return embeds;
}

Tensor Pipeline::Impl::initial_latents(Stream& stream, const Request& request,
                                       const GenerateOptions& options) {
  if (options.latents) return *options.latents;
  Tensor latents = draw_noise(
      {request.images, bundle.latent.channels, request.rows, request.columns}, request.seeds);
  if (options.image) {
    // diffusers' scale_noise (flow matching) and add_noise (variance preserving).
    const Tensor image = vae_encoder().encode(stream, from_image(*options.image));
    const float sigma = request.schedule.sigmas.front(), alpha = request.schedule.alphas.front();
    for (std::int64_t n = 0; n < request.images; ++n) {
      std::ranges::transform(
          latents.rows(n, n + 1).floats(), image.floats(), latents.rows(n, n + 1).floats().begin(),
          [sigma, alpha](float noise, float clean) { return sigma * noise + alpha * clean; });
    }
  }
  return bundle.latent.packed ? pack(latents, bundle.patch_size) : latents;
}

void Pipeline::Impl::denoise(Stream& stream, const Request& request, Branches& branches,
                             const GenerateOptions& options, const StepCallback& on_step,
                             Generation& generation) {
  Stopwatch watch;
  const int steps = request.schedule.steps();
  generation.step_seconds.reserve(static_cast<std::size_t>(steps));
  GuidedStep guided = buffers(stream, branches, request.weights);
  KeptTimesteps unconditional, degraded;
  Reporter reporter(stream, on_step, branches, [&] {
    return decode(stream, request, on_host(stream, guided.denoised), options.vae_tile);
  });
  const StreamCounts before = stream.counts();
  StreamCounts called_back;  // what a callback asked for is not the loop's
  const bool velocity = predicts_velocity(bundle.prediction_type);
  for (const Evaluation& evaluation : request.plan) {
    const StepPoint& point = evaluation.point;
    const StepWeights& weights = request.weights[static_cast<std::size_t>(point.step)];
    branches.run(point.timestep, weights);
    guided.combine = {
        weights.lambda,
        weights.w,
        weights.unconditional(),
        weights.degraded(),
        unconditional.next(point.timestep, weights.unconditional(), weights.reuse_unconditional),
        degraded.next(point.timestep, weights.degraded(), weights.reuse_degraded)};
    guided.to_denoised = {velocity, point.sigma, point.alpha};
    guided.update = evaluation.update;
    stream.step(guided);
    if (!evaluation.ended) continue;
    stream.wait();
    generation.step_seconds.push_back(watch.lap());
    wait_for_check();
    const StreamCounts own = stream.counts();
    if (!reporter.report(evaluation)) {
      throw Interrupted("stopped after step " + std::to_string(point.step + 1) + " of " +
                        std::to_string(steps));
    }
    called_back += stream.counts() - own;
    watch.lap();  // the callback's time is not the step's
  }
  generation.unconditional_steps = steps_that(request.weights, &StepWeights::runs_unconditional);
  generation.degraded_steps = steps_that(request.weights, &StepWeights::runs_degraded);
  generation.base_rows = branches.base_rows;
  generation.forked_rows = branches.forked_rows;
  generation.timings.network = branches.network_seconds;
  generation.loop = stream.counts() - before - called_back;
  generation.latents = on_host(stream, guided.x);
  if (!std::ranges::all_of(generation.latents.floats(), [](float v) { return std::isfinite(v); })) {
    throw InputError(
        "the model's prediction became NaN or infinite: lower --cfg-scale and --dg-scale, or "
        "export in float32");
  }
}

std::vector<Image> Pipeline::Impl::decode(Stream& stream, const Request& request,
                                          const Tensor& latents, int tile) {
  const bool packed = bundle.latent.packed;
  const Tensor unpacked =
      packed ? unpack(latents, request.token_rows, request.token_columns, bundle.patch_size)
             : latents;
  return to_images(vae_decoder().decode(stream, unpacked, tile));
}

Pipeline::Pipeline(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Pipeline::Pipeline(Pipeline&&) noexcept = default;
Pipeline& Pipeline::operator=(Pipeline&&) noexcept = default;
Pipeline::~Pipeline() = default;

Pipeline::Pipeline(Bundle bundle, std::shared_ptr<Backend> backend)
    : Pipeline(std::make_unique<Impl>(std::move(bundle), std::move(backend))) {}

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
  const Request request = resolve(bundle(), options);
  const auto stream = backend().make_stream();
  Generation generation;
  Stopwatch watch;
  // At the first call, while the prompt is read.
  std::future<void> loading;
  if (!impl_->has_transformer())
    loading = std::async(std::launch::async, [this] { impl_->transformer(); });
  const PromptEmbeds embeds = impl_->embeddings(*stream, request, options);
  generation.notes = embeds.notes;
  generation.timings.text = watch.lap();

  const Tensor latents = impl_->initial_latents(*stream, request, options);
  if (loading.valid()) loading.get();
  Branches branches(bundle(), impl_->transformer(), request, embeds, *stream);
  stream->copy(latents, branches.latents());
  watch.lap();
  impl_->denoise(*stream, request, branches, options, on_step, generation);
  generation.timings.denoise = watch.lap();

  generation.images = impl_->decode(*stream, request, generation.latents, options.vae_tile);
  generation.timings.vae = watch.lap();
  generation.timings.total = total.lap();
  return generation;
}

}  // namespace intaglio
