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

struct Timings {  // seconds
  double text = 0;
  double denoise = 0;
  // Of denoise, in the transformer's graphs; on a GPU only until they have been given to it.
  double network = 0;
  double vae = 0;
  double total = 0;
};

struct Generation {
  std::vector<Image> images;
  // [N, C, h, w], or [N, tokens, C * patch_size^2] where the bundle packs them, as the scheduler
  // leaves them, before the VAE's scaling is undone.
  Tensor latents;
  Timings timings;
  std::vector<double> step_seconds;
  std::int64_t base_rows = 0;    // rows through blocks 0..m, summed over the evaluations
  std::int64_t forked_rows = 0;  // rows through the blocks after m, likewise
  StreamCounts loop;             // what the denoising loop asked its stream for
  std::vector<int> unconditional_steps, degraded_steps;  // that ran D_0, and D_m
  std::vector<std::string> notes;  // what the caller should know: a prompt that was cut
};

// What a step callback sees. Valid during the call only, its functions too.
class Step {
 public:
  int step = 0;  // just done, from 0
  int steps = 0;
  float sigma = 0;     // the step started from
  float timestep = 0;  // of the step's last evaluation of the model, in the scheduler's unit
  // After the step: what is written into it is what the next step starts from.
  std::function<Tensor()> latents;
  std::function<std::vector<Image>()> preview;  // decodes the current estimate of the clean image
  // Copies, on the host, of what the step's last evaluation computed in a block: the image stream
  // after it [rows, T, C], after block m before channels are suppressed; and AdaLN's residual gate
  // of its attention [rows, C]. Rows stand in the order D_0, D_c and, after block m in layout
  // forked, D_m, without those of branches that did not run, images in order within each. Throw
  // UsageError for a bundle that is not observed, and for a block that is not there.
  std::function<Tensor(int block)> hidden_states, gate;
};
// Returning false stops the run; generate() then throws Interrupted.
using StepCallback = std::function<bool(const Step&)>;

class Pipeline {
 public:
  // Throws InputError for the bundle, UnavailableError for the device. Weights in large files are
  // hashed meanwhile: the first call that hands out results waits for that, and throws InputError
  // where they are not what was exported.
  static Pipeline open(const std::filesystem::path& bundle, const BackendOptions& backend = {});
  // On a backend of the caller's own; its graphs have to be the bundle's.
  Pipeline(Bundle bundle, std::shared_ptr<Backend> backend);
  Pipeline(Pipeline&&) noexcept;
  Pipeline& operator=(Pipeline&&) noexcept;
  ~Pipeline();

  const Bundle& bundle() const;
  const Backend& backend() const;

  // What generate() takes as prompt_embeds in place of these texts. Throws UsageError for a bundle
  // without text encoders, InputError for broken UTF-8.
  PromptEmbeds embed(const std::string& prompt,
                     const std::optional<std::string>& negative_prompt = {}) const;

  // Safe to call from several threads at once; each gets what it would get alone.
  Generation generate(const GenerateOptions& options, const StepCallback& on_step = {}) const;

 private:
  friend class Batch;
  class Impl;
  explicit Pipeline(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;  // batches share it
};

}  // namespace intaglio
