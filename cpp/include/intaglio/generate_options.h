// What a caller asks one call to generate.
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
  int batch = 1;                           // images; must agree with `seeds` if those are several
  std::optional<int> height;               // pixels
  std::optional<int> width;
  std::optional<Ramp> cfg_scale;
  std::optional<Window> cfg_window;
  std::optional<double> distilled_guidance;  // for transformers that take it as an input
  std::optional<Ramp> dg_scale;
  std::optional<Window> dg_window;
  std::optional<Ramp> ma_keep;
  std::optional<Ramp> reuse_interval;  // empty: every step runs its branches
  std::optional<Window> reuse_window;
  std::vector<int> ma_channels;  // empty: the bundle's
  // White pixels suppress, black pixels leave the token alone. Brightness is averaged per token, so
  // the picture needs at least a pixel per token.
  std::optional<Image> ma_tokens;
  std::optional<std::string> scheduler;  // euler, heun, dpmpp-2m, ddim
  std::optional<Tensor> latents;         // instead of noise, laid out as Generation::latents
  std::optional<Image> image;            // start from this picture
  std::optional<double> strength;        // of the noise laid over `image`, 0.6: 1 forgets it
  int vae_tile = 1024;                   // pixels; larger images are decoded in overlapping tiles
};

}  // namespace intaglio
