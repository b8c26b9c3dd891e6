// What a pipeline has loaded, and the stages of a call but the loop.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <vector>

#include "intaglio/pipeline.h"
#include "pipeline/branches.h"
#include "pipeline/denoising.h"
#include "pipeline/request.h"
#include "pipeline/text.h"
#include "pipeline/vae.h"

namespace intaglio {

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

  // Encodes what the call has to draw, and says so in `generation`.
  Denoising start(Stream& stream, std::shared_ptr<const Request> request,
                  Generation& generation, std::int64_t id = 0);
  // As the loop has them.
  Tensor initial_latents(Stream& stream, const Request& request);
  // On the host.
  std::vector<Image> decode(Stream& stream, const Request& request, const Tensor& latents);

  Bundle bundle;
  std::shared_ptr<Backend> backend;

 private:
  const VaeDecoder& vae_decoder() {
    return vae_decoder_.get([&] { return std::make_unique<VaeDecoder>(bundle, *backend); });
  }
  const VaeEncoder& vae_encoder() {
    return vae_encoder_.get([&] { return std::make_unique<VaeEncoder>(bundle, *backend); });
  }
  // What the call gave, or what its prompts become.
  PromptEmbeds encode(Stream& stream, const Request& request);

  Lazy<TextStage> text_;
  Lazy<TransformerSessions> transformer_;
  Lazy<VaeDecoder> vae_decoder_;
  Lazy<VaeEncoder> vae_encoder_;
  std::shared_future<void> checked_;
};

}  // namespace intaglio
