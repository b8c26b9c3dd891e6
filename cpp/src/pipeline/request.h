// A request with every option resolved: what the bundle's defaults leave open is filled in, and
// everything is checked before any work starts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/generate_options.h"
#include "intaglio/memory_plan.h"
#include "pipeline/mask_crop.h"
#include "pipeline/references.h"
#include "sampling/plan.h"

namespace intaglio {

struct PromptTexts {
  std::string positive, negative;
  std::optional<std::string> source = {};  // whose massive channels D_c takes over
};

struct ClassLabel {
  int index = 0;
};

struct Request {
  GenerateOptions asked;  // with the bundle's defaults, and without the pixels of its pictures

  // What to draw. Prompt texts still have to be encoded.
  std::variant<PromptTexts, ClassLabel, PromptEmbeddings> condition;
  float distilled_guidance = 0;

  std::int64_t images = 1;
  std::int64_t first_image = 0;        // where these are a group of a run's images, its first one
  int height = 0, width = 0;           // pixels
  std::int64_t rows = 0, columns = 0;  // latent cells
  std::int64_t token_rows = 0, token_columns = 0;
  std::int64_t text_tokens = 0;  // that each prompt has in the transformer
  // Of all images, as the loop has them: packed where the bundle says so.
  Shape latent_shape;

  // Where the loop starts: the given latents, or noise, or noise over a picture.
  std::vector<std::uint64_t> seeds;
  Tensor latents;                 // not defined() where they are drawn from `seeds`
  std::optional<Image> image;     // the picture under the noise
  std::vector<Image> references;  // as the VAE encodes them
  std::vector<Grid> reference_grids;
  Tensor reference_latents;  // packed, [1, tokens, C]; not defined() where they are not encoded yet
  Tensor drawn;  // [1, C, h, w]: 1 in cells of the mask, 0 outside; not defined() without a mask
  std::optional<MaskCrop> crop;  // the part of a larger picture that `image` is

  Schedule schedule;  // of the steps that run
  Plan plan;          // the evaluations of these steps
  // Whether the sampler adds noise of its own, or corrects x.
  bool adds_noise() const;
  bool corrects() const;
  std::vector<StepWeights> weights;  // of each step
  CfgRule rule;
  Correction correction;
  std::vector<int> slg_layers;  // blocks that D_m skips, if any, instead of suppressing channels
  std::optional<double> slg_share;  // or the share of them, others in each step
  bool skips_layers() const { return !slg_layers.empty() || slg_share; }
  // Whether any step takes the branch's difference from earlier ones, or is skipped.
  bool reuses_unconditional() const;
  bool reuses_degraded() const;
  bool skips() const;
  // Whether D_c's row takes massive channels from that of another prompt.
  bool transports() const;
  // Whether a third branch has rows from the first block on: a D_m that skips blocks, or the prompt
  // that massive channels come from.
  bool third_branch() const { return skips_layers() || transports(); }
  double skip_tolerance = 0;   // of the line, where steps are skipped
  bool unconditional = false;  // whether any step runs D_0

  Tensor channel_mask;      // [C]: 1 on massive channels
  Tensor ref;               // [C]: what a suppressed channel goes to
  Tensor token_mask;        // [tokens]: 1 where massive channels may be suppressed, 0 where never
  bool masks_term = false;  // whether token_mask weighs DG's term, too

  int vae_tile = 0;   // pixels
  MemoryPlan memory;  // without a limit of memory it is empty, and all parts stay loaded
  // Whether the images do not fit at once.
  bool in_groups() const { return memory.limit > 0 && images > memory.images_at_once; }

  std::vector<std::string> notes;  // what the user should know although it is not an error
};

// Throws the UsageError or InputError of the first problem.
Request resolve(const Bundle& bundle, const GenerateOptions& options);

// Adds every problem to `problems`. The request may be used only if there is none.
Request resolve(const Bundle& bundle, const GenerateOptions& options,
                std::vector<Problem>& problems);

}  // namespace intaglio
