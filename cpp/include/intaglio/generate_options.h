// The options of one call of Pipeline::generate.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "intaglio/embedding.h"
#include "intaglio/guidance.h"
#include "intaglio/image.h"
#include "intaglio/tensor.h"

namespace intaglio {

// An empty optional means the bundle's default. options.h describes the fields that a flag can
// give.
struct GenerateOptions {
  // One of these three says what to draw. A bundle is drawn by class or by text, never by both.
  std::optional<std::string> prompt;
  std::optional<int> class_label;
  std::optional<PromptEmbeddings> prompt_embeds;
  std::string negative_prompt;
  std::optional<int> steps;
  std::vector<std::uint64_t> seeds = {0};  // one for the whole batch, or one for each image
  int batch = 1;              // number of images; if there are several seeds, 1 or their number
  std::optional<int> height;  // pixels
  std::optional<int> width;
  std::optional<Ramp> cfg_scale;
  std::optional<Window> cfg_window;
  std::optional<std::string> guidance;  // cfg, apg, cfg-zero, tcfg, mambo-g; CfgRule has the rest
  std::optional<double> guidance_eta, guidance_norm_threshold, guidance_momentum;
  std::optional<int> guidance_zero_steps;
  std::optional<double> guidance_alpha, guidance_rescale, guidance_normalization;
  std::optional<double> guidance_tag, guidance_prev;  // Correction
  std::optional<double> distilled_guidance;           // for transformers that take it as an input
  std::optional<Ramp> dg_scale;
  std::optional<Window> dg_window;
  std::optional<Ramp> ma_keep;
  std::optional<std::string> ma_keep_by;      // step or timestep: what a ramp of ma_keep follows
  std::optional<std::string> dg_region;       // all or mask: the tokens where DG's term acts
  std::optional<std::string> transport_from;  // a prompt whose massive channels D_c takes over
  std::vector<int> slg_layers;  // blocks that D_m skips, if any, instead of suppressing channels
  std::optional<double> slg_share;  // the share of the blocks that it skips, others in each step
  std::optional<double> slg_scale;
  std::optional<Window> slg_window;
  std::optional<Ramp> reuse_interval;  // if empty, every step runs its branches
  std::optional<Window> reuse_window;
  std::optional<std::string> skip;    // auto: the bundle's schedule for these steps
  std::optional<Ramp> skip_interval;  // if empty, no step is skipped
  std::optional<Window> skip_window;
  std::vector<int> skip_steps;  // these and no others, if there are any
  std::optional<double> skip_tolerance;
  std::vector<int> ma_channels;  // if empty, the bundle's
  // A picture of where D_m suppresses channels: fully on white tokens, not at all on black ones.
  // Brightness is averaged over each token, so the picture needs at least one pixel for each token.
  // If empty, this is `mask`, and without a mask D_m suppresses them everywhere.
  std::optional<Image> ma_tokens;
  std::optional<std::string> scheduler;  // a name that scheduler_type() knows
  std::optional<Tensor> latents;         // in place of noise, laid out as Generation::latents
  // The picture to start from. Where the bundle takes references and neither `strength` nor `mask`
  // is given, with_defaults() puts it before `references`.
  std::optional<Image> image;
  std::vector<Image> references;    // pictures that the model sees beside the prompt
  std::optional<Image> mask;        // of `image`, opaque: white is drawn anew, black stays
  std::optional<double> mask_blur;  // pixels: radius of a Gaussian; 0 if empty
  std::optional<int> mask_padding;  // pixels; if empty, all of `image` is drawn, not a part
  std::optional<double> strength;   // share of `image` that noise replaces, 0.6 if empty
  int vae_tile = 1024;              // pixels; larger images are decoded in overlapping tiles
};

}  // namespace intaglio
