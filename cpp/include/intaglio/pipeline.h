// Draws images from a bundle and a prompt.
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
  // The part of `denoise` that calls of the transformer's graphs take. On a GPU a call may return
  // before its work is done.
  double network = 0;
  double vae = 0;
  double total = 0;
};

struct Generation {
  std::vector<Image> images;
  // The latents as the scheduler leaves them, before the VAE's scaling is undone: [N, C, h, w], or
  // [N, tokens, C * patch_size^2] if the bundle packs them.
  Tensor latents;
  Timings timings;
  std::vector<double> step_seconds;
  std::int64_t base_rows = 0;    // rows through blocks 0..m, summed over the evaluations
  std::int64_t forked_rows = 0;  // the same for the blocks after m
  StreamCounts loop;             // allocations and copies of the denoising loop
  int evaluations = 0;           // of the model
  std::vector<int> skipped_steps;
  std::vector<int> unconditional_steps, degraded_steps;  // the steps that ran D_0, and D_m
  // |D' - D| / |D|, where D is the first prediction after skipped steps and D' what the line
  // through the two before them says of it: the largest of all images, 0 without skipped steps.
  double largest_distance = 0;
  std::vector<std::string> notes;  // warnings: a truncated prompt, guidance that no step uses
  std::vector<TextEntries> texts;  // of each image's PNG: png_text() of the options of the run
};

// The part of a run that a step callback sees. It and its functions are valid only during the
// callback.
class Step {
 public:
  int step = 0;  // the step that has ended, from 0
  int steps = 0;
  float sigma = 0;     // noise level from which the step started
  float timestep = 0;  // of the step's last evaluation, in the scheduler's unit
  // With BackendOptions::max_memory, the images of a run may be drawn in groups, one after another.
  // The other members are those of one group, which the run's image `first_image` begins.
  std::int64_t first_image = 0;
  int group = 0, groups = 1;  // the group, from 0, and how many there are
  // Returns the latents after the step. The callback may write into them; the next step starts from
  // them.
  std::function<Tensor()> latents;
  std::function<std::vector<Image>()> preview;  // decodes the current estimate of the clean image
  // Return copies, in host memory, of what a block computed in the step's last evaluation.
  // hidden_states: the image stream after the block, [rows, T, C]; for block m it is the stream
  // before channels are suppressed. gate: AdaLN's residual gate of the block's attention, [rows,
  // C]. The rows are those of D_0, D_c and, for blocks after m in layout forked, D_m, as far as
  // these branches ran; within a branch they are in the order of the images. Both throw UsageError
  // for a bundle that is not observed, for a block that the transformer does not have, and after a
  // step that was skipped.
  std::function<Tensor(int block)> hidden_states, gate;
};
// Returning false stops the run, and generate() throws Interrupted.
using StepCallback = std::function<bool(const Step&)>;

class Pipeline {
 public:
  // Throws InputError for the bundle and UnavailableError for the device. Large files, which hold
  // weights, are hashed in the background: the first call that returns results waits for this, and
  // throws InputError if a file is not as it was exported.
  static Pipeline open(const std::filesystem::path& bundle, const BackendOptions& backend = {});
  // Runs on the given backend, which must be able to run the bundle's graphs.
  Pipeline(Bundle bundle, std::shared_ptr<Backend> backend);
  Pipeline(Pipeline&&) noexcept;
  Pipeline& operator=(Pipeline&&) noexcept;
  ~Pipeline();

  const Bundle& bundle() const;
  const Backend& backend() const;

  // Loads the graphs that a run needs and that are not loaded, instead of in the first run. Some
  // devices compile them then, which can take minutes. Calls `loading` before each of the stages.
  // Throws Interrupted when it returns false.
  void load(const std::function<bool(int stage, int stages)>& loading) const;

  // Encodes texts. The result can be passed to generate() as prompt_embeds in place of them. Throws
  // UsageError for a bundle without text encoders, and InputError for broken UTF-8.
  PromptEmbeddings embed(const std::string& prompt,
                         const std::optional<std::string>& negative_prompt = {}) const;

  // Draws images. Several threads may call this at once, and each gets the result that it would get
  // alone.
  Generation generate(const GenerateOptions& options, const StepCallback& on_step = {}) const;

 private:
  friend class Batch;
  explicit Pipeline(std::shared_ptr<LoadedPipeline> loaded);
  std::shared_ptr<LoadedPipeline> loaded_;  // batches share it
};

}  // namespace intaglio
