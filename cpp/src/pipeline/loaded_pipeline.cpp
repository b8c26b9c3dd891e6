#include "pipeline/loaded_pipeline.h"

#include <algorithm>
#include <variant>

#include "bundle/files.h"
#include "intaglio/error.h"
#include "intaglio/rng.h"
#include "pipeline/packing.h"
#include "platform/process.h"

namespace intaglio {

namespace {

MemoryLimit limit_of(const BackendOptions& options, const Backend& backend) {
  if (options.max_memory.empty()) return {};
  return memory_limit(options.max_memory, backend.choice.device, options.prepack);
}

// The same tensor [1, ...] for each image.
Tensor repeated(const Tensor& one, std::int64_t images) {
  Shape shape = one.shape();
  shape.front() = images;
  Tensor all(std::move(shape), one.dtype());
  for (std::int64_t n = 0; n < images; ++n)
    std::ranges::copy(one.floats(), all.rows(n, n + 1).floats().begin());
  return all;
}

}  // namespace

int LoadedPipeline::own_process() { return platform::process_id(); }

LoadedPipeline::LoadedPipeline(Bundle opened, std::shared_ptr<Backend> used,
                               const BackendOptions& options)
    : bundle(std::move(opened)),
      backend(std::move(used)),
      options_(options),
      limit_(limit_of(options, *backend)) {}

// A process that was forked has the memory of the one that opened the pipeline but none of its
// threads. To join them would end the process or take for ever, so there the memory is left alone.
std::shared_ptr<LoadedPipeline> LoadedPipeline::make(Bundle bundle,
                                                     std::shared_ptr<Backend> backend,
                                                     const BackendOptions& options) {
  return {new LoadedPipeline(std::move(bundle), std::move(backend), options),
          [](LoadedPipeline* loaded) {
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

Request LoadedPipeline::plan(const GenerateOptions& options, std::int64_t together) const {
  Request request = resolve(bundle, options);
  if (limit_.bytes == 0) return request;
  request.memory = plan_memory(bundle, options, limit_, together);
  if (request.in_groups()) {
    request.notes.push_back("the images are drawn in groups of " +
                            std::to_string(request.memory.images_at_once) +
                            ", since --max-memory has no room for all at once");
  }
  const int tile = request.memory.vae_tile;
  if (tile < std::min(request.vae_tile, std::max(request.height, request.width))) {
    request.notes.push_back("the picture is decoded in tiles of " + std::to_string(tile) +
                            " pixels, since --max-memory has no room for larger ones");
    request.vae_tile = tile;
  }
  return request;
}

std::unique_lock<std::recursive_mutex> LoadedPipeline::take_turn() {
  return limit_.bytes == 0 ? std::unique_lock<std::recursive_mutex>() : std::unique_lock(turn_);
}

// With the smallest picture, so that encoders stay loaded wherever some run can keep them.
MemoryPlan LoadedPipeline::text_plan() const {
  if (limit_.bytes == 0) return {};
  GenerateOptions options;
  if (!bundle.latent.fixed_size) options.height = options.width = bundle.size_multiple();
  return plan_memory(bundle, options, limit_);
}

std::shared_ptr<DeviceMemory> LoadedPipeline::memory() {
  std::call_once(memory_made_, [&] { memory_ = backend->make_memory(); });
  return memory_;
}

const Backend& LoadedPipeline::cpu() {
  std::call_once(cpu_made_, [&] {
    BackendOptions options = options_;
    options.device = "cpu";
    options.precision = "float32";
    cpu_ = make_backend(options, bundle);
  });
  return *cpu_;
}

const Backend& LoadedPipeline::backend_of(const std::string& encoder) {
  const bool quantized = !bundle.prompt->encoders.at(encoder).quantized.empty();
  return quantized && backend->choice.device != "cpu" ? cpu() : *backend;
}

std::shared_ptr<const TextStage> LoadedPipeline::text() {
  return text_.get([&] {
    const auto choose = [this](const std::string& name) -> const Backend& {
      return backend_of(name);
    };
    return std::make_unique<TextStage>(bundle, choose, false);
  });
}

std::shared_ptr<const TransformerSessions> LoadedPipeline::transformer() {
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
  if (limit_.bytes > 0) return stages;
  if (bundle.prompt && !bundle.prompt->encoders.empty()) stages.emplace_back([this] { text(); });
  stages.emplace_back([this] { transformer(); });
  stages.emplace_back([this] { vae_decoder(); });
  return stages;
}

void LoadedPipeline::let_go() {
  text_.let_go();
  transformer_.let_go();
  vae_decoder_.let_go();
  vae_encoder_.let_go();
  platform::trim_memory();
}

PromptEmbeddings LoadedPipeline::encode(const std::vector<NamedText>& texts,
                                        const MemoryPlan& plan) {
  PromptEmbeddings embeddings;
  std::vector<TextConditioning> encoded;
  if (plan.in_turn) {
    const auto choose = [&](const std::string& name) -> const Backend& {
      const auto phase = std::ranges::find(plan.phases, name, &MemoryPhase::part);
      return phase != plan.phases.end() && phase->on_cpu ? cpu() : backend_of(name);
    };
    encoded = TextStage(bundle, choose, true).encode(texts, embeddings.notes);
  } else {
    encoded = text()->encode(texts, embeddings.notes);
  }
  embeddings.positive = std::move(encoded.front());
  if (texts.size() > 1) embeddings.negative = std::move(encoded[1]);
  if (texts.size() > 2) embeddings.source = std::move(encoded[2]);
  return embeddings;
}

PromptEmbeddings LoadedPipeline::encode(const Request& request) {
  if (const auto* given = std::get_if<PromptEmbeddings>(&request.condition)) return *given;
  const auto* texts = std::get_if<PromptTexts>(&request.condition);
  if (!texts) return {};
  std::vector<NamedText> named{{texts->positive, "prompt"}};
  if (request.unconditional) named.push_back({texts->negative, "negative prompt"});
  if (texts->source) named.push_back({*texts->source, "prompt of --transport-from"});
  PromptEmbeddings embeddings = encode(named, request.memory);
  if (texts->source && !request.unconditional)
    embeddings.source = std::exchange(embeddings.negative, std::nullopt);
  return embeddings;
}

Tensor LoadedPipeline::encode_references(const Request& request) {
  if (!bundle.references || request.reference_latents.defined()) return request.reference_latents;
  std::vector<Tensor> encoded;
  std::int64_t tokens = 0;
  for (const Image& picture : request.references) {
    encoded.push_back(pack(vae_encoder()->encode(from_image(picture)), bundle.patch_size));
    tokens += encoded.back().dim(1);
  }
  if (request.memory.in_turn) let_go();
  Tensor all({1, tokens, request.latent_shape.back()}, DType::float32);
  auto next = all.floats().begin();
  for (const Tensor& one : encoded) next = std::ranges::copy(one.floats(), next).out;
  return all;
}

LoopStart LoadedPipeline::start(const Request& request) {
  const Tensor references = encode_references(request);
  if (request.latents.defined()) return {.latents = request.latents, .references = references};
  const auto laid_out = [this](const Tensor& latents) {
    return bundle.latent.packed ? pack(latents, bundle.patch_size) : latents;
  };
  const Tensor noise = draw_noise(
      {request.images, bundle.latent.channels, request.rows, request.columns}, request.seeds);
  if (!request.image) return {.latents = laid_out(noise), .references = references};
  const Tensor image = repeated(vae_encoder()->encode(from_image(*request.image)), request.images);
  if (request.memory.in_turn) let_go();
  // diffusers' scale_noise (flow matching) and add_noise (variance preserving).
  const float sigma = request.schedule.sigmas.front(), alpha = request.schedule.alphas.front();
  Tensor latents(noise.shape(), DType::float32);
  std::ranges::transform(
      noise.floats(), image.floats(), latents.floats().begin(),
      [sigma, alpha](float drawn, float clean) { return sigma * drawn + alpha * clean; });
  LoopStart start{.latents = laid_out(latents), .references = references};
  if (request.drawn.defined()) {
    start.kept = {.drawn = laid_out(repeated(request.drawn, request.images)),
                  .clean = laid_out(image),
                  .noise = laid_out(noise)};
  }
  return start;
}

std::vector<Image> LoadedPipeline::decode(const Request& request, const Tensor& latents) {
  check_usable();
  const Tensor unpacked = bundle.latent.packed ? unpack(latents, request.token_rows,
                                                        request.token_columns, bundle.patch_size)
                                               : latents;
  std::vector<Image> images = vae_decoder()->decode(unpacked, request.vae_tile);
  if (request.memory.in_turn) let_go();
  check_usable();
  if (request.crop)
    for (Image& image : images) image = request.crop->put_back(image);
  return images;
}

std::vector<Image> LoadedPipeline::preview(const Request& request, const Tensor& latents) {
  if (request.memory.in_turn) {
    throw UsageError(
        "a preview needs the VAE beside the transformer, for which --max-memory has no room: leave "
        "previews out, or raise it");
  }
  return decode(request, latents);
}

}  // namespace intaglio
