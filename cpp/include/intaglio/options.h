// The one list of options: the command line, Python's keywords, the server's fields, reports and
// PNG metadata all come from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "intaglio/bundle.h"
#include "intaglio/generate_options.h"
#include "intaglio/image.h"

namespace intaglio {

struct OptionInfo {
  const char* name;   // as in Python
  const char* value;  // what the help calls the value
  const char* help;
  const char* flags = nullptr;  // where they are not --name with dashes
};

// Calls visit(info, field) for every option that a flag can give, in the order of the help.
template <typename Options, typename Visitor>
void visit_options(Options& options, Visitor&& visit) {
  visit({"prompt", "TEXT", "what to draw"}, options.prompt);
  visit({"class_label", "N", "the class to draw, for bundles that are drawn by class", "--class"},
        options.class_label);
  visit(
      {"negative_prompt", "TEXT", "what the unconditional branch is asked for instead of nothing"},
      options.negative_prompt);
  visit({"steps", "N", "denoising steps"}, options.steps);
  visit(
      {"seeds", "A,B,...", "one seed for the whole batch, or one for each image", "--seed,--seeds"},
      options.seeds);
  visit({"batch", "N", "images drawn from one seed"}, options.batch);
  visit({"height", "PIXELS", "image height"}, options.height);
  visit({"width", "PIXELS", "image width"}, options.width);
  visit({"cfg_scale", "S or S0:S1",
         "classifier-free guidance, 1 + lambda; 1 is off and saves a branch; S0:S1 goes linearly "
         "over the steps"},
        options.cfg_scale);
  visit({"cfg_window", "A:B", "part of the run with CFG: step i of N when A <= i/N < B"},
        options.cfg_window);
  visit({"distilled_guidance", "G",
         "guidance that the transformer was distilled with and takes as an input"},
        options.distilled_guidance);
  visit({"dg_scale", "W or W0:W1", "Detail Guidance; 0 is off and saves a branch"},
        options.dg_scale);
  visit({"dg_window", "A:B", "part of the run with Detail Guidance"}, options.dg_window);
  visit({"ma_keep", "R or R0:R1",
         "how much of the massive channels the degraded branch keeps: 0 none, 1 all"},
        options.ma_keep);
  visit({"ma_channels", "C,D,...", "channels to suppress instead of the bundle's"},
        options.ma_channels);
  visit({"reuse_interval", "N or N0:N1",
         "run the unconditional and the degraded branch every N steps only, and extrapolate their "
         "differences in between: faster, not exact; N0:N1 goes down over the steps; 1 is off"},
        options.reuse_interval);
  visit({"reuse_window", "A:B", "part of the run with --reuse-interval; all of it if not given"},
        options.reuse_window);
  visit({"scheduler", "NAME",
         "euler, heun or dpmpp-2m; ddim or dpmpp-2m for a model that predicts epsilon"},
        options.scheduler);
  visit({"strength", "X", "how much of --image is forgotten: 1 all of it [0.6]"}, options.strength);
  visit({"vae_tile", "PIXELS", "decode larger images in overlapping tiles of this size"},
        options.vae_tile);
}

// The option's flags as CLI11 takes them: "--seed,--seeds".
std::string flags_of(const OptionInfo& info);

// Images that one call draws: one for each seed when there are several, else as many as `batch`
// says, or as the given latents have rows when it says nothing (1).
std::int64_t image_count(const GenerateOptions& options);

// The same options with every empty one set to the bundle's default.
GenerateOptions with_defaults(const Bundle& bundle, GenerateOptions options);

// The options as a JSON object, by their names; a ramp or window as [first, last].
std::string to_json(const GenerateOptions& options);

// What a PNG says about its image: how to draw it again, and under "intaglio:inputs" which
// pictures, latents or embeddings that also takes, which are not in it. `image` counts from 0
// within the batch.
TextEntries png_text(const Bundle& bundle, const GenerateOptions& options, std::size_t image);

}  // namespace intaglio
