// The one list of options: the command line, Python's keywords, the server's fields, reports and
// PNG metadata all come from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/generate_options.h"
#include "intaglio/image.h"

namespace intaglio {

struct DeviceChoice;  // backend.h

// What an option is about: the groups of the help.
enum class OptionGroup { drawn, images, sampling, guidance, reuse, start };

struct OptionInfo {
  OptionGroup group;
  const char* name;   // as in Python
  const char* value;  // what the help calls the value
  const char* help;
  const char* flags = nullptr;  // if they are not --name with dashes
};

// Those of visit_options() that say how CFG combines its two predictions.
template <typename Options, typename Visitor>
void visit_rule_options(Options& options, Visitor& visit) {
  using enum OptionGroup;
  visit({guidance, "guidance", "RULE",
         "how CFG combines its two predictions: cfg, apg, cfg-zero, tcfg or mambo-g [cfg]"},
        options.guidance);
  visit({guidance, "guidance_eta", "ETA",
         "apg: share of the difference along the conditional prediction that is kept [0]"},
        options.guidance_eta);
  visit({guidance, "guidance_norm_threshold", "R",
         "apg: largest norm of an image's difference; 0 sets no limit [15]"},
        options.guidance_norm_threshold);
  visit({guidance, "guidance_momentum", "B",
         "apg: what each difference keeps of the one before, from -1 to 1 [-0.5]"},
        options.guidance_momentum);
  visit({guidance, "guidance_zero_steps", "N",
         "cfg-zero: first steps in which the prediction is zero [1]"},
        options.guidance_zero_steps);
  visit({guidance, "guidance_alpha", "A",
         "mambo-g: how fast the scale falls where the two predictions differ much [8]"},
        options.guidance_alpha);
  visit({guidance, "guidance_rescale", "PHI",
         "bring the standard deviation of CFG's result to that of the conditional prediction, "
         "from 0 (not) to 1 (fully), with any rule [0]"},
        options.guidance_rescale);
  visit({guidance, "guidance_normalization", "F",
         "largest norm of an image's result of CFG, in norms of its conditional prediction, with "
         "any rule, as cfg_normalization of Z-Image's pipeline; 0 sets no limit [0]"},
        options.guidance_normalization);
  visit({guidance, "guidance_tag", "ETA",
         "multiply the part of each step across the latents (TAG), with or without CFG, such as "
         "1.15 [1]"},
        options.guidance_tag);
  visit({guidance, "guidance_prev", "W",
         "add W times the change of the prediction from the step before (SG-prev), with or without "
         "CFG [0]"},
        options.guidance_prev);
}

// Those of visit_options() for guidance by blocks that are skipped.
template <typename Options, typename Visitor>
void visit_slg_options(Options& options, Visitor& visit) {
  using enum OptionGroup;
  visit({guidance, "slg_layers", "A,B,...",
         "skip-layer guidance (SLG): blocks, counted from 0, that the degraded branch skips, "
         "instead of Detail Guidance; 7,8,9 for SD3.5 medium"},
        options.slg_layers);
  visit(
      {guidance, "slg_share", "X",
       "S2-Guidance, in place of --slg-layers: share of the blocks to skip, such as 0.1; at least "
       "one, chosen anew in each step"},
      options.slg_share);
  visit({guidance, "slg_scale", "S", "scale of SLG [2.8], or of S2-Guidance [0.25]"},
        options.slg_scale);
  visit({guidance, "slg_window", "A:B",
         "steps with skipped blocks: every i in 0..N-1 with A <= i/N < B [0.01:0.2, or all with "
         "--slg-share]"},
        options.slg_window);
}

// Those of visit_options() that make runs faster and inexact.
template <typename Options, typename Visitor>
void visit_faster_options(Options& options, Visitor& visit) {
  using enum OptionGroup;
  visit({reuse, "reuse_interval", "N or N0:N1",
         "run the unconditional and the degraded branch only every N steps and extrapolate their "
         "differences from the conditional branch in between, which is faster but not exact; 1 "
         "turns this off; two numbers, the larger one first, change it linearly over the steps"},
        options.reuse_interval);
  visit({reuse, "reuse_window", "A:B",
         "steps with --reuse-interval: every i with A <= i/N < B; all if not given"},
        options.reuse_window);
  visit({reuse, "skip_interval", "N or N0:N1",
         "run the model only every N steps and follow a straight line through its last two "
         "predictions in between, which is faster but not exact; two numbers, the larger one "
         "first, change it linearly over the steps"},
        options.skip_interval);
  visit({reuse, "skip_window", "A:B",
         "steps with --skip-interval: every i with A <= i/N < B; all if not given"},
        options.skip_window);
  visit({reuse, "skip_steps", "A,B,...",
         "skip exactly these steps, counted from 0, instead of those of an interval; with "
         "--strength only steps that run are counted; a step runs all the same if it is among the "
         "first three with the same branches, or if the line is off by more than "
         "--skip-tolerance"},
        options.skip_steps);
  visit({reuse, "skip_tolerance", "T",
         "skip no more steps while the line is off by more than T times the prediction [0.2]"},
        options.skip_tolerance);
  visit({reuse, "skip", "auto", "skip steps as the bundle says for this number of steps"},
        options.skip);
}

// Those of visit_options() that say where and how massive channels change.
template <typename Options, typename Visitor>
void visit_ma_options(Options& options, Visitor& visit) {
  using enum OptionGroup;
  visit({guidance, "ma_keep_by", "WHAT",
         "what two numbers of --ma-keep follow: step, its number, or timestep, where the first "
         "belongs to pure noise and the second to the picture [step]"},
        options.ma_keep_by);
  visit({guidance, "ma_channels", "C,D,...",
         "channels to suppress, in place of the massive channels that the bundle names"},
        options.ma_channels);
  visit({guidance, "dg_region", "WHERE",
         "where DG's term acts: all, or mask, only the tokens that --ma-tokens or --mask marks "
         "[all]"},
        options.dg_region);
  visit({guidance, "transport_from", "TEXT",
         "prompt whose massive channels replace those of --prompt on the tokens of --ma-tokens, "
         "in the steps of --dg-window, instead of Detail Guidance"},
        options.transport_from);
}

// Those of visit_options() that say how a picture is changed.
template <typename Options, typename Visitor>
void visit_start_options(Options& options, Visitor& visit) {
  using enum OptionGroup;
  visit({start, "strength", "X",
         "share of the picture given by --image that noise replaces, above 0 and up to 1 [0.6]"},
        options.strength);
  visit({start, "mask_blur", "PIXELS",
         "radius of a Gaussian that blurs the mask given by --mask before it is cut at half its "
         "range, as diffusers' pipelines cut it, which rounds its outline [0]"},
        options.mask_blur);
  visit({start, "mask_padding", "PIXELS",
         "draw only the part of the picture around the mask given by --mask, and so many pixels "
         "more, in the size of --width and --height, and paste it into the picture of any size"},
        options.mask_padding);
}

// Calls visit(info, field) for every option that a flag can give, in the order of the help.
template <typename Options, typename Visitor>
void visit_options(Options& options, Visitor&& visit) {
  using enum OptionGroup;
  visit({drawn, "prompt", "TEXT", "text that describes the image"}, options.prompt);
  visit({drawn, "class_label", "N", "class of the image, for a bundle that draws by class",
         "--class"},
        options.class_label);
  visit({drawn, "negative_prompt", "TEXT",
         "prompt of the unconditional branch, which says what to avoid; empty if not given"},
        options.negative_prompt);
  visit({sampling, "steps", "N", "number of denoising steps"}, options.steps);
  visit({images, "seeds", "A,B,...", "one seed for the whole batch, or one seed per image",
         "--seed,--seeds"},
        options.seeds);
  visit({images, "batch", "N", "number of images to draw from one seed"}, options.batch);
  visit({images, "height", "PIXELS", "height of the image in pixels"}, options.height);
  visit({images, "width", "PIXELS", "width of the image in pixels"}, options.width);
  visit({guidance, "cfg_scale", "S or S0:S1",
         "scale of classifier-free guidance (CFG), 1 + lambda; 1 turns it off and saves a branch; "
         "two numbers, S0:S1, change it linearly over the steps; a list, A,B,... or @FILE.json, "
         "has a number for each step"},
        options.cfg_scale);
  visit({guidance, "cfg_window", "A:B", "steps with CFG: every i in 0..N-1 with A <= i/N < B"},
        options.cfg_window);
  visit_rule_options(options, visit);
  visit({guidance, "distilled_guidance", "G",
         "guidance scale that a guidance-distilled transformer takes as an input"},
        options.distilled_guidance);
  visit(
      {guidance, "dg_scale", "W or W0:W1",
       "scale w of Detail Guidance (DG); 0 turns it off and saves a branch; two numbers or a list "
       "change it as in --cfg-scale"},
      options.dg_scale);
  visit({guidance, "dg_window", "A:B", "steps with DG: every i in 0..N-1 with A <= i/N < B"},
        options.dg_window);
  visit(
      {guidance, "ma_keep", "R or R0:R1",
       "share of the massive activations that the degraded branch keeps, from 0 (none) to 1 (all); "
       "more amplifies them; two numbers or a list change it as in --cfg-scale"},
      options.ma_keep);
  visit_ma_options(options, visit);
  visit_slg_options(options, visit);
  visit_faster_options(options, visit);
  visit({sampling, "scheduler", "NAME",
         "euler, heun, dpmpp-2m, dpmpp-2m-sde, unipc, euler-ancestral or lcm for a flow matching "
         "model; ddim, dpmpp-2m, dpmpp-2m-sde or unipc for a model that predicts epsilon"},
        options.scheduler);
  visit_start_options(options, visit);
  visit({sampling, "vae_tile", "PIXELS",
         "size of the overlapping tiles in which larger images are decoded"},
        options.vae_tile);
}

// Returns the option's flags as CLI11 takes them: "--seed,--seeds".
std::string flags_of(const OptionInfo& info);

// Says what may have been meant by an option that there is not, as the end of a sentence: ": use
// --steps" for diffusers' num_inference_steps, " (did you mean steps?)" for stpes, or nothing. All
// options have `names`, before which `before` is put.
std::string meant_option(const std::string& name, const std::vector<std::string>& names,
                         const std::string& before = "");

// Returns the number of images that one call draws: one for each seed if there are several, else
// `batch`, or the number of rows of the given latents if `batch` is 1.
std::int64_t image_count(const GenerateOptions& options);

// Returns the options with every empty one set to the bundle's default.
GenerateOptions with_defaults(const Bundle& bundle, GenerateOptions options);

// Returns the options as a JSON object with their names as keys. A window is [start, end], and
// a ramp is [first, last] or a list of all values.
std::string to_json(const GenerateOptions& options);

// Returns the text entries of an image's PNG: the options that draw the image again, the prompt
// and "parameters" as AUTOMATIC1111's web UI writes them, which other tools read, and, under
// "intaglio:inputs", the kinds of inputs that are needed too but are not in the PNG (pictures,
// latents, embeddings). `image` counts from 0 within the batch, and `choice` is of the backend.
TextEntries png_text(const Bundle& bundle, const GenerateOptions& options, std::size_t image,
                     const DeviceChoice& choice);

}  // namespace intaglio
