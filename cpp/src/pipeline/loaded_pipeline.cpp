#include "pipeline/loaded_pipeline.h"

#include <algorithm>
#include <variant>

#include "bundle/files.h"
#include "intaglio/error.h"
#include "intaglio/rng.h"
#include "pipeline/packing.h"
#include "platform/process.h"

namespace intaglio {

int LoadedPipeline::own_process() { return platform::process_id(); }

// A process that was forked has the memory of the one that opened the pipeline but none of its
// threads. To join them would end the process or take for ever, so there the memory is left alone.
std::shared_ptr<LoadedPipeline> LoadedPipeline::make(Bundle bundle,
                                                     std::shared_ptr<Backend> backend) {
  return {new LoadedPipeline(std::move(bundle), std::move(backend)), [](LoadedPipeline* loaded) {
            if (loaded->process_ == own_process()) delete loaded;
          }};
}

void LoadedPipeline::check_usable() const {
  if (process_ != own_process()) {
    throw UsageError(
        "the pipeline was opened before this process was forked, and its threads are not here: "
        "open it after the fork, in the process that uses it");
  }
  if (bundle.files) bundle.files->check_unchanged();
}

std::shared_ptr<DeviceMemory> LoadedPipeline::memory() {
  std::call_once(memory_made_, [&] { memory_ = backend->make_memory(); });
  return memory_;
}

const TransformerSessions& LoadedPipeline::transformer() {
  return transformer_.get([&] {
    auto sessions = std::make_unique<TransformerSessions>();
    for (const auto& [name, graph] : bundle.transformer_graphs)
      (*sessions)[name] = backend->load(bundle, graph);
    return sessions;
  });
}

std::future<void> LoadedPipeline::load_transformer() {
  if (transformer_.loaded()) return {};
  return std::async(kInBackground, [this] { transformer(); });
}

std::vector<std::function<void()>> LoadedPipeline::stages() {
  std::vector<std::function<void()>> stages;
  if (bundle.prompt && !bundle.prompt->encoders.empty()) stages.emplace_back([this] { text(); });
  stages.emplace_back([this] { transformer(); });
  stages.emplace_back([this] { vae_decoder(); });
  return stages;
}

PromptEmbeddings LoadedPipeline::encode(Stream& stream, const Request& request) {
  if (const auto* given = std::get_if<PromptEmbeddings>(&request.condition)) return *given;
  PromptEmbeddings embeddings;
  const auto* texts = std::get_if<PromptTexts>(&request.condition);
  if (!texts) return embeddings;
  embeddings.positive = text().encode(stream, texts->positive, "prompt", embeddings.notes);
  if (request.unconditional) {
    embeddings.negative =
        text().encode(stream, texts->negative, "negative prompt", embeddings.notes);
  }
  return embeddings;
}

Tensor LoadedPipeline::initial_latents(Stream& stream, const Request& request) {
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

std::vector<Image> LoadedPipeline::decode(Stream& stream, const Request& request,
                                          const Tensor& latents) {
  check_usable();
  const Tensor unpacked = bundle.latent.packed ? unpack(latents, request.token_rows,
                                                        request.token_columns, bundle.patch_size)
                                               : latents;
  const Tensor decoded = vae_decoder().decode(stream, unpacked, request.vae_tile);
  check_usable();
  return to_images(decoded);
}

}  // namespace intaglio
