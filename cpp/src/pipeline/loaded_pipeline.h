// What a pipeline has loaded, and the stages of a call around the denoising loop.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "intaglio/memory_plan.h"
#include "intaglio/pipeline.h"
#include "pipeline/branch_buffers.h"
#include "pipeline/denoising_state.h"
#include "pipeline/request.h"
#include "pipeline/text.h"
#include "pipeline/vae.h"

namespace intaglio {

// Loaded when it is first used, so that a run waits for no graph that it does not need. Whoever has
// the result keeps it loaded.
template <typename T>
class Lazy {
 public:
  template <typename Make>
  std::shared_ptr<const T> get(Make&& make) {
    const std::scoped_lock lock(mutex_);
    if (!value_) value_ = make();
    return value_;
  }
  void let_go() {
    const std::scoped_lock lock(mutex_);
    value_.reset();
  }
  bool loaded() const {
    const std::scoped_lock lock(mutex_);
    return value_ != nullptr;
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const T> value_;
};

// Where the system gives no more threads, the work is done when its result is asked for.
inline constexpr auto kInBackground = std::launch::async | std::launch::deferred;

class LoadedPipeline {
 public:
  // `options` are those that the backend was made with.
  static std::shared_ptr<LoadedPipeline> make(Bundle bundle, std::shared_ptr<Backend> backend,
                                              const BackendOptions& options);

  // Hashes large files in the background, beside the work that can begin without the result.
  void check_in_background(const std::function<void()>& check) {
    // A copy, since libstdc++ would have moved the function away when it finds no thread for it.
    checked_ = std::async(kInBackground, check).share();
  }
  // Must be called before anything is loaded or runs. Throws UsageError in another process than the
  // one that opened the pipeline, and InputError when a file of the bundle was overwritten since.
  void check_usable() const;
  // Must be called before anything that was computed is handed out. Throws what the check in the
  // background threw, or what check_usable() throws.
  void wait_for_check() const {
    if (checked_.valid()) checked_.get();
    check_usable();
  }

  // Resolves options, and with a limit also how the run keeps to it when `together` images share
  // the transformer; 0 stands for those of the options. Throws as resolve() and plan_memory() do.
  Request plan(const GenerateOptions& options, std::int64_t together) const;
  // Waits until no other run has the memory, where it is limited.
  std::unique_lock<std::recursive_mutex> take_turn();
  // Returns the plan of encoders that run without a request.
  MemoryPlan text_plan() const;

  std::shared_ptr<const TransformerSessions> transformer();
  // Loads the transformer in the background. The future is not valid where it is loaded already.
  std::future<void> load_transformer();

  // Returns what loads each part that a run from noise needs, in order; nothing where memory is
  // limited, since each run loads its parts then.
  std::vector<std::function<void()>> stages();
  // Lets go of all parts that are loaded. Those that are in use stay as long as they are used.
  void let_go();

  // Encodes one text, or a prompt and a negative prompt.
  PromptEmbeddings encode(const std::vector<NamedText>& texts, const MemoryPlan& plan);
  // Encodes the request's prompts. Returns the embeddings that were given in their place, and none
  // for a bundle that is drawn by class.
  PromptEmbeddings encode(const Request& request);
  // Returns what the loop starts from, and what it reads of references.
  LoopStart start(const Request& request);
  // Decodes latents that are laid out as the loop has them, in host memory.
  std::vector<Image> decode(const Request& request, const Tensor& latents);
  // Decodes latents of a run that goes on. Throws UsageError where its parts are loaded in turn.
  std::vector<Image> preview(const Request& request, const Tensor& latents);

  // Returns the memory of the device, or null where the loop runs in the host's.
  std::shared_ptr<DeviceMemory> memory();

  Bundle bundle;
  std::shared_ptr<Backend> backend;

 private:
  static int own_process();
  LoadedPipeline(Bundle opened, std::shared_ptr<Backend> used, const BackendOptions& options);
  ~LoadedPipeline() = default;

  std::shared_ptr<const TextStage> text();
  std::shared_ptr<const VaeDecoder> vae_decoder() {
    return vae_decoder_.get([&] { return std::make_unique<VaeDecoder>(bundle, *backend); });
  }
  std::shared_ptr<const VaeEncoder> vae_encoder() {
    return vae_encoder_.get([&] { return std::make_unique<VaeEncoder>(bundle, *backend); });
  }
  Tensor encode_references(const Request& request);
  const Backend& cpu();
  // Returns what runs that encoder while parts stay loaded: quantised ones run on the CPU.
  const Backend& backend_of(const std::string& encoder);

  const int process_ = own_process();  // that opened the pipeline
  const BackendOptions options_;
  const MemoryLimit limit_;
  std::recursive_mutex turn_;  // recursive, since a step callback may start another run
  std::once_flag cpu_made_;
  std::shared_ptr<Backend> cpu_;
  Lazy<TextStage> text_;
  Lazy<TransformerSessions> transformer_;
  Lazy<VaeDecoder> vae_decoder_;
  Lazy<VaeEncoder> vae_encoder_;
  std::once_flag memory_made_;
  std::shared_ptr<DeviceMemory> memory_;
  std::shared_future<void> checked_;
};

}  // namespace intaglio
