// From a bundle and a prompt to images.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/embedding.h"
#include "intaglio/generate_options.h"
#include "intaglio/image.h"
#include "intaglio/tensor.h"

namespace intaglio {

class LoadedPipeline;  // internal

// Seconds.
struct Timings {
  double text = 0;
  double denoise = 0;
  // The part of `denoise` in the transformer's graphs; on a GPU only until they have been given to
  // it.
  double network = 0;
  double vae = 0;
  double total = 0;
};

struct Generation {
  std::vector<Image> images;
  // As the scheduler leaves them, before the VAE's scaling is undone: [N, C, h, w], or [N, tokens,
  // C * patch_size^2] where the bundle packs them.
  Tensor latents;
  Timings timings;
  std::vector<double> step_seconds;
  std::int64_t base_rows = 0;    // rows through blocks 0..m, summed over the evaluations
  std::int64_t forked_rows = 0;  // the same for the blocks after m
  StreamCounts loop;             // allocations and copies of the denoising loop
  std::vector<int> unconditional_steps, degraded_steps;  // the steps that ran D_0, and D_m
  std::vector<std::string> notes;  // what the caller should know, such as a prompt that was cut
};

// What a step callback sees of the run. It and its functions are valid only during the callback.
class Step {
 public:
  int step = 0;  // just done, from 0
  int steps = 0;
  float sigma = 0;     // the step started from
  float timestep = 0;  // of the step's last evaluation of the model, in the scheduler's unit
  // The latents after the step. The next step starts from what is written into them.
  std::function<Tensor()> latents;
  std::function<std::vector<Image>()> preview;  // decodes the current estimate of the clean image
  // Copies, in host memory, of what the step's last evaluation computed in a block: the image
  // stream after it, [rows, T, C] (after block m before channels are suppressed), and AdaLN's
  // residual gate of its attention, [rows, C]. Rows are in the order D_0, D_c and, after block m
  // in layout forked, D_m, without the rows of branches that did not run, and with images in order
  // within each. They throw UsageError for a bundle that is not observed, and for a block that the
  // transformer does not have.
  std::function<Tensor(int block)> hidden_states, gate;
};
// Returning false stops the run, and generate() throws Interrupted.
using StepCallback = std::function<bool(const Step&)>;

class Pipeline {
 public:
  // Throws InputError for the bundle and UnavailableError for the device. Large files, which hold
  // weights, are hashed in the background: the first call that hands out results waits for that,
  // and throws InputError if they are not what was exported.
  static Pipeline open(const std::filesystem::path& bundle, const BackendOptions& backend = {});
  // Runs on a backend of the caller, which must run the bundle's graphs.
  Pipeline(Bundle bundle, std::shared_ptr<Backend> backend);
  Pipeline(Pipeline&&) noexcept;
  Pipeline& operator=(Pipeline&&) noexcept;
  ~Pipeline();

  const Bundle& bundle() const;
  const Backend& backend() const;

  // Returns what generate() takes as prompt_embeds in place of these texts. Throws UsageError for a
  // bundle without text encoders, and InputError for broken UTF-8.
  PromptEmbeddings embed(const std::string& prompt,
                         const std::optional<std::string>& negative_prompt = {}) const;

  // Several threads may call this at once. Each gets what it would get alone.
  Generation generate(const GenerateOptions& options, const StepCallback& on_step = {}) const;

 private:
  friend class Batch;
  explicit Pipeline(std::shared_ptr<LoadedPipeline> loaded);
  std::shared_ptr<LoadedPipeline> loaded_;  // batches share it
};

}  // namespace intaglio
