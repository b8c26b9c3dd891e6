#include "intaglio/pipeline.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>

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

  // What the call gave, or what its prompts become.
  PromptEmbeds embeddings(const Request& request, const GenerateOptions& options);
  // Unpacked, unless they were given.
  Tensor initial_latents(const Request& request, const GenerateOptions& options);
  void denoise(const Request& request, Branches& branches, const GenerateOptions& options,
               const StepCallback& on_step, Generation& generation);
  std::vector<Image> decode(const Request& request, const Tensor& latents, int tile);

  Bundle bundle;
  std::shared_ptr<Backend> backend;

 private:
  Lazy<TextStage> text_;
  Lazy<TransformerSessions> transformer_;
  Lazy<VaeDecoder> vae_decoder_;
  Lazy<VaeEncoder> vae_encoder_;
};

PromptEmbeds Pipeline::Impl::embeddings(const Request& request, const GenerateOptions& options) {
  if (!bundle.prompt) return {};
  if (options.prompt_embeds) return *options.prompt_embeds;
  PromptEmbeds embeds;
  embeds.positive = text().encode(*options.prompt, "prompt", embeds.notes);
  if (request.unconditional)
    embeds.negative = text().encode(options.negative_prompt, "negative prompt", embeds.notes);
  return embeds;
}

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
      return decode(request, estimate, options.vae_tile);
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

std::vector<Image> Pipeline::Impl::decode(const Request& request, const Tensor& latents, int tile) {
  const bool packed = bundle.latent.packed;
  const Tensor unpacked =
      packed ? unpack(latents, request.token_rows, request.token_columns, bundle.patch_size)
             : latents;
  return to_images(vae_decoder().decode(unpacked, tile));
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

PromptEmbeds Pipeline::embed(const std::string& prompt,
                             const std::optional<std::string>& negative_prompt) const {
  check_encoders(impl_->bundle);
  PromptEmbeds embeds;
  embeds.positive = impl_->text().encode(prompt, "prompt", embeds.notes);
  if (negative_prompt)
    embeds.negative = impl_->text().encode(*negative_prompt, "negative prompt", embeds.notes);
  return embeds;
}

Generation Pipeline::generate(const GenerateOptions& options, const StepCallback& on_step) const {
  Stopwatch total;
  const Bundle& bundle = impl_->bundle;
  const Request request = resolve(bundle, options);
  Generation generation;
  Stopwatch watch;
  const PromptEmbeds embeds = impl_->embeddings(request, options);
  generation.notes = embeds.notes;
  generation.timings.text = watch.lap();

  generation.latents = impl_->initial_latents(request, options);
  if (bundle.latent.packed && !options.latents)
    generation.latents = pack(generation.latents, bundle.patch_size);
  Branches branches(bundle, impl_->transformer(), request, embeds);
  watch.lap();
  impl_->denoise(request, branches, options, on_step, generation);
  generation.timings.denoise = watch.lap();

  generation.images = impl_->decode(request, generation.latents, options.vae_tile);
  generation.timings.vae = watch.lap();
  generation.timings.total = total.lap();
  return generation;
}

}  // namespace intaglio
