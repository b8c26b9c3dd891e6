#include "pipeline/pipeline_impl.h"

#include <algorithm>
#include <future>
#include <utility>

#include "core/stopwatch.h"
#include "intaglio/rng.h"
#include "pipeline/packing.h"

namespace intaglio {

PromptEmbeds Pipeline::Impl::encode(Stream& stream, const Request& request) {
  if (const auto* embeds = std::get_if<PromptEmbeds>(&request.condition)) return *embeds;
  PromptEmbeds embeds;
  const auto* texts = std::get_if<PromptTexts>(&request.condition);
  if (!texts) return embeds;  // drawn by class
  embeds.positive = text().encode(stream, texts->positive, "prompt", embeds.notes);
  if (request.unconditional)
    embeds.negative = text().encode(stream, texts->negative, "negative prompt", embeds.notes);
  return embeds;
}

Tensor Pipeline::Impl::initial_latents(Stream& stream, const Request& request) {
  if (request.latents.defined()) return request.latents;
  Tensor latents = draw_noise(
      {request.images, bundle.latent.channels, request.rows, request.columns}, request.seeds);
  if (request.image) {
    // diffusers' scale_noise (flow matching) and add_noise (variance preserving).
    const Tensor image = vae_encoder().encode(stream, from_image(*request.image));
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
                                Generation& generation, std::int64_t id) {
  Stopwatch watch;
  std::future<void> loading;  // at the first call, while the prompt is read
  if (!transformer_.loaded()) loading = std::async(std::launch::async, [this] { transformer(); });
  const PromptEmbeds embeds = encode(stream, *request);
  generation.notes = embeds.notes;
  generation.timings.text = watch.lap();
  if (loading.valid()) loading.get();
  const Session* conditioning =
      bundle.conditioning() ? transformer().at("conditioning").get() : nullptr;
  return Denoising(bundle, conditioning, std::move(request), embeds, stream, id);
}

std::vector<Image> Pipeline::Impl::decode(Stream& stream, const Request& request,
                                          const Tensor& latents) {
  const bool packed = bundle.latent.packed;
  const Tensor unpacked =
      packed ? unpack(latents, request.token_rows, request.token_columns, bundle.patch_size)
             : latents;
  return to_images(vae_decoder().decode(stream, unpacked, request.vae_tile));
}

}  // namespace intaglio
