#include "pipeline/pipeline_impl.h"

#include <algorithm>
#include <future>
#include <utility>

#include "core/stopwatch.h"
#include "intaglio/rng.h"
#include "pipeline/packing.h"

namespace intaglio {

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

Denoising Pipeline::Impl::start(Stream& stream, std::shared_ptr<const Request> request,
                                const GenerateOptions& options, Generation& generation,
                                std::int64_t id) {
  Stopwatch watch;
  std::future<void> loading;  // at the first call, while the prompt is read
  if (!transformer_.loaded()) loading = std::async(std::launch::async, [this] { transformer(); });
  const PromptEmbeds embeds = embeddings(stream, *request, options);
  generation.notes = embeds.notes;
  generation.timings.text = watch.lap();
  if (loading.valid()) loading.get();
  const Session* conditioning =
      bundle.conditioning() ? transformer().at("conditioning").get() : nullptr;
  return Denoising(bundle, conditioning, std::move(request), embeds, stream, id);
}

std::vector<Image> Pipeline::Impl::decode(Stream& stream, const Request& request,
                                          const Tensor& latents, int tile) {
  const bool packed = bundle.latent.packed;
  const Tensor unpacked =
      packed ? unpack(latents, request.token_rows, request.token_columns, bundle.patch_size)
             : latents;
  return to_images(vae_decoder().decode(stream, unpacked, tile));
}

}  // namespace intaglio
