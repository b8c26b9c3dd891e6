#include "intaglio/pipeline.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>

#include "intaglio/error.h"
#include "intaglio/rng.h"
#include "pipeline/branches.h"
#include "pipeline/request.h"
#include "pipeline/text.h"
#include "pipeline/vae.h"

namespace intaglio {

namespace {

class Stopwatch {
 public:
  // Seconds since the last lap.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(start_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

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

 private:
  std::mutex mutex_;
  std::unique_ptr<T> value_;
};

bool any_step(const Request& request, bool (StepWeights::*needs)() const) {
  const int steps = request.schedule.steps();
  for (int step = 0; step < steps; ++step) {
    if ((weights_at(request.guidance, step, steps).*needs)()) return true;
  }
  return false;
}

}  // namespace

class Pipeline::Impl {
 public:
  Impl(Bundle opened, std::shared_ptr<Backend> used)
      : bundle(std::move(opened)), backend(std::move(used)) {}

  const TextStage& text() {
    return text_.get([&] { return std::make_unique<TextStage>(bundle, *backend); });
  }
  const TransformerSessions& transformer() {
    return transformer_.get(
        [&] { return std::make_unique<TransformerSessions>(load_transformer(bundle, *backend)); });
  }
  const VaeDecoder& vae_decoder() {
    return vae_decoder_.get([&] { return std::make_unique<VaeDecoder>(bundle, *backend); });
  }
  const VaeEncoder& vae_encoder() {
    return vae_encoder_.get([&] { return std::make_unique<VaeEncoder>(bundle, *backend); });
  }

  Tensor initial_latents(const Request& request, const GenerateOptions& options);
  void denoise(const Request& request, Branches& branches, const GenerateOptions& options,
               const StepCallback& on_step, Generation& generation);

  Bundle bundle;
  std::shared_ptr<Backend> backend;

 private:
  Lazy<TextStage> text_;
  Lazy<TransformerSessions> transformer_;
  Lazy<VaeDecoder> vae_decoder_;
  Lazy<VaeEncoder> vae_encoder_;
};

Tensor Pipeline::Impl::initial_latents(const Request& request, const GenerateOptions& options) {
  if (options.latents) return options.latents->clone();
  Tensor latents = draw_noise(
      {request.images, bundle.latent.channels, request.rows, request.columns}, request.seeds);
  if (!options.image) return latents;
  // diffusers' scale_noise (flow matching) and add_noise (variance preserving).
  const Tensor image = vae_encoder().encode(from_image(*options.image));
  const float sigma = request.schedule.sigmas.front(), alpha = request.schedule.alphas.front();
  for (std::int64_t n = 0; n < request.images; ++n) {
    std::ranges::transform(
        latents.rows(n, n + 1).floats(), image.floats(), latents.rows(n, n + 1).floats().begin(),
        [sigma, alpha](float noise, float clean) { return sigma * noise + alpha * clean; });
  }
  return latents;
}

void Pipeline::Impl::denoise(const Request& request, Branches& branches,
                             const GenerateOptions& options, const StepCallback& on_step,
                             Generation& generation) {
  Stopwatch watch;
  generation.step_seconds.reserve(static_cast<std::size_t>(request.schedule.steps()));
  std::span<const float> clean;  // the last estimate, for previews
  const Denoiser denoiser = [&](std::span<const float> x, const StepPoint& point,
                                std::span<float> denoised) {
    const StepWeights weights = weights_at(request.guidance, point.step, point.steps);
    const auto d = branches.run(x, point.timestep, weights);
    combine(denoised, d.conditional, d.unconditional, d.degraded, weights);
    to_denoised(bundle.prediction_type, x, point, denoised);
    clean = denoised;
  };
  const OnStep report = [&](const StepPoint& point, std::span<const float>) {
    generation.step_seconds.push_back(watch.lap());
    if (!on_step) return true;
    Step step;
    step.step = point.step;
    step.steps = point.steps;
    step.sigma = point.sigma;
    step.latents = generation.latents;
    step.preview = [&] {
      Tensor estimate(generation.latents.shape(), DType::float32);
      std::ranges::copy(clean, estimate.floats().begin());
      return to_images(vae_decoder().decode(estimate, options.vae_tile));
    };
    const bool go_on = on_step(step);
    watch.lap();  // the callback's time is not the step's
    return go_on;
  };
  const int done = request.sampler(denoiser, generation.latents.floats(), request.schedule, report);
  generation.base_rows = branches.base_rows;
  generation.forked_rows = branches.forked_rows;
  if (done < request.schedule.steps()) {
    throw Interrupted("stopped after step " + std::to_string(done) + " of " +
                      std::to_string(request.schedule.steps()));
  }
  if (!std::ranges::all_of(generation.latents.floats(), [](float v) { return std::isfinite(v); })) {
    throw InputError(
        "the model's prediction became NaN or infinite: lower --cfg-scale and --dg-scale, or "
        "export in float32");
  }
}

Pipeline::Pipeline(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Pipeline::Pipeline(Pipeline&&) noexcept = default;
Pipeline& Pipeline::operator=(Pipeline&&) noexcept = default;
Pipeline::~Pipeline() = default;

Pipeline Pipeline::open(const std::filesystem::path& bundle, const BackendOptions& backend) {
  Bundle opened = Bundle::open(bundle);
  return Pipeline(std::make_unique<Impl>(std::move(opened), make_backend(backend)));
}

const Bundle& Pipeline::bundle() const { return impl_->bundle; }
const Backend& Pipeline::backend() const { return *impl_->backend; }

Generation Pipeline::generate(const GenerateOptions& options, const StepCallback& on_step) const {
  Stopwatch total;
  const Request request = resolve(impl_->bundle, options);
  Generation generation;
  Stopwatch watch;
  const PromptEmbedding positive = impl_->text().encode(options.prompt);
  std::optional<PromptEmbedding> negative;
  if (any_step(request, &StepWeights::unconditional))
    negative = impl_->text().encode(options.negative_prompt);
  generation.timings.text = watch.lap();

  generation.latents = impl_->initial_latents(request, options);
  Branches branches(impl_->bundle, impl_->transformer(), request, positive,
                    negative ? &*negative : nullptr);
  watch.lap();
  impl_->denoise(request, branches, options, on_step, generation);
  generation.timings.denoise = watch.lap();

  generation.images = to_images(impl_->vae_decoder().decode(generation.latents, options.vae_tile));
  generation.timings.vae = watch.lap();
  generation.timings.total = total.lap();
  return generation;
}

}  // namespace intaglio
