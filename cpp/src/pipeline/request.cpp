#include "pipeline/request.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "intaglio/error.h"
#include "intaglio/options.h"
#include "pipeline/latent_mask.h"
#include "pipeline/problems.h"
#include "pipeline/references.h"
#include "pipeline/resolve_rule.h"
#include "pipeline/skip_problem.h"
#include "pipeline/skipped_layers.h"
#include "pipeline/suppression.h"
#include "pipeline/token_mask.h"
#include "pipeline/unused_guidance.h"
#include "pipeline/validate_inputs.h"

namespace intaglio {

namespace {

using Problems = std::vector<Problem>;

void require_graphs(const Bundle& bundle, const GenerateOptions& options, Problems& problems) {
  if (!bundle.vae_decoder) {
    problems.push_back({"bundle",
                        bundle.folder.string() +
                            " has no VAE decoder, which every picture needs: export it again from "
                            "a model that has one",
                        ExitCode::bad_input});
  }
  if (options.image && !bundle.vae_encoder) {
    problems.push_back({"image",
                        "--image does not fit: " + bundle.name +
                            " has no VAE encoder, so it cannot start from a picture: leave "
                            "--image out, or take a model that can, such as SD3 or FLUX.1",
                        ExitCode::bad_input});
  }
}

void set_condition(Request& request, const Bundle& bundle, GenerateOptions& options) {
  request.distilled_guidance = static_cast<float>(options.distilled_guidance.value_or(0));
  if (bundle.classes) {
    request.condition = ClassLabel{options.class_label.value_or(0)};
  } else if (options.prompt_embeds) {
    const Shape& text = options.prompt_embeds->positive.text.shape();
    request.text_tokens = text.size() > 1 ? text[1] : 0;
    request.condition = std::move(*options.prompt_embeds);
  } else {
    request.text_tokens = bundle.prompt->text_length();
    request.condition = PromptTexts{.positive = std::move(options.prompt).value_or(""),
                                    .negative = std::move(options.negative_prompt),
                                    .source = std::move(options.transport_from)};
  }
}

std::string size_of(const Image& picture) {
  return std::to_string(picture.width) + "x" + std::to_string(picture.height);
}

bool set_size(Request& request, const Bundle& bundle, const GenerateOptions& given,
              const GenerateOptions& options, Problems& problems) {
  request.height = *options.height;
  request.width = *options.width;
  std::vector<Problem> wrong = bundle.check_size(request.height, request.width);
  if (!wrong.empty() && options.image && !given.height && !given.width)
    wrong = {{"image", "--image is " + size_of(*options.image) + " pixels, which " + bundle.name +
                           " does not draw: give --width and --height, to which it is scaled"}};
  problems.insert(problems.end(), wrong.begin(), wrong.end());
  request.rows = request.height / bundle.latent.vae_scale_factor;
  request.columns = request.width / bundle.latent.vae_scale_factor;
  request.token_rows = request.rows / bundle.patch_size;
  request.token_columns = request.columns / bundle.patch_size;
  return wrong.empty();
}

void set_mask(Request& request, const Bundle& bundle, const GenerateOptions& options,
              Problems& problems) {
  if (!options.mask) {
    if (options.mask_blur)
      problems.push_back({"mask_blur", "--mask-blur says how --mask is blurred: give --mask too"});
    return;
  }
  const auto refuse = [&](const std::string& message, ExitCode code = ExitCode::bad_input) {
    problems.push_back({"mask", message, code});
  };
  if (!options.image) {
    refuse("--mask says which part of --image is drawn anew: give --image too", ExitCode::usage);
    return;
  }
  if (size_of(*options.mask) != size_of(*options.image)) {
    refuse("--mask is " + size_of(*options.mask) + " pixels but --image is " +
           size_of(*options.image) + ": make both of one size");
    return;
  }
  const double blur = options.mask_blur.value_or(0);
  if (!is_blur(blur)) {
    problems.push_back({"mask_blur", "--mask-blur must be from 0 to 1000 pixels"});
    return;
  }
  request.drawn =
      make_latent_mask(*options.mask, blur, bundle.latent.channels, request.rows, request.columns);
  if (std::ranges::any_of(request.drawn.floats(), [](float drawn) { return drawn != 0; })) return;
  const std::string cell = std::to_string(bundle.latent.vae_scale_factor);
  refuse("--mask is white nowhere, so that nothing would be drawn: paint a part of it white, of " +
         cell + "x" + cell + " pixels or more");
}

bool lacks_images(const Latent& latent, const GenerateOptions& options) {
  const std::size_t axes = latent.packed ? 2 : 3;
  return options.latents && options.seeds.size() == 1 && options.latents->shape().size() == axes;
}

bool set_images(Request& request, const Bundle& bundle, const GenerateOptions& options,
                Problems& problems) {
  const Latent& latent = bundle.latent;
  request.seeds = options.seeds;
  request.images = image_count(options);
  // The first axis of latents that lack the axis of images is no number of images.
  if (lacks_images(latent, options)) request.images = std::max(1, options.batch);
  const auto refuse = [&](const char* field, const std::string& message) {
    problems.push_back({field, message});
    return false;
  };
  if (options.batch < 1 || request.images < 1) return refuse("batch", "--batch must be at least 1");
  if (options.seeds.empty()) return refuse("seeds", "--seeds is empty: give at least one seed");
  if (options.batch != 1 && options.batch != request.images) {
    return refuse("seeds", "--seeds gives " + std::to_string(request.images) +
                               " images but --batch asks for " + std::to_string(options.batch) +
                               ": leave --batch out");
  }
  request.latent_shape = {request.images, latent.channels, request.rows, request.columns};
  if (latent.packed) {
    request.latent_shape = {request.images, request.token_rows * request.token_columns,
                            latent.channels * bundle.patch_size * bundle.patch_size};
  }
  return true;
}

void set_latents(Request& request, const Bundle& bundle, const GenerateOptions& options,
                 Problems& problems) {
  if (!options.latents) return;
  request.latents = *options.latents;
  const Tensor& latents = request.latents;
  const auto refuse = [&](const std::string& message) {
    problems.push_back({"latents", message, ExitCode::bad_input});
  };
  if (latents.dtype() != DType::float32 || latents.shape() != request.latent_shape) {
    refuse("the given latents have shape " + to_string(latents.shape()) + " where " +
           to_string(request.latent_shape) + " float32 is needed: " +
           (lacks_images(bundle.latent, options)
                ? "the first axis counts images, give latents[None] for one"
                : "change them, or --batch, --height and --width"));
  } else if (!std::ranges::all_of(latents.floats(), [](float x) { return std::isfinite(x); })) {
    refuse("the given latents hold NaN or infinity: give finite numbers");
  }
}

std::optional<Guidance> guidance_of(const Bundle& bundle, const GenerateOptions& options,
                                    Problems& problems) {
  if (options.reuse_window && !options.reuse_interval) {
    problems.push_back(
        {"reuse_window",
         "--reuse-window says where --reuse-interval holds: give --reuse-interval too"});
    return std::nullopt;
  }
  if (std::optional<Problem> problem = skip_problem(options)) {
    problems.push_back(*std::move(problem));
    return std::nullopt;
  }
  Guidance guidance{.cfg_scale = *options.cfg_scale,
                    .cfg_window = *options.cfg_window,
                    .dg_scale = *options.dg_scale,
                    .dg_window = *options.dg_window,
                    .ma_keep = *options.ma_keep,
                    .reuse_interval = options.reuse_interval.value_or(1.0),
                    .reuse_window = options.reuse_window.value_or(Window{}),
                    .skip_interval = options.skip_interval.value_or(1.0),
                    .skip_window = options.skip_window.value_or(Window{}),
                    .skip_steps = options.skip_steps};
  if (options.skip_tolerance) guidance.skip_tolerance = *options.skip_tolerance;
  std::vector<Problem> wrong;
  guidance.rule = resolve_rule(bundle, options, wrong);
  guidance.correction = resolve_correction(bundle, options, wrong);
  set_skipped_layers(bundle, options, guidance, wrong);
  set_transport(bundle, options, guidance, wrong);
  check_region(options, wrong);
  const std::vector<Problem> values = guidance_problems(guidance);
  wrong.insert(wrong.end(), values.begin(), values.end());
  problems.insert(problems.end(), wrong.begin(), wrong.end());
  if (!wrong.empty()) return std::nullopt;
  return guidance;
}

// Leaves the last steps to a request that starts from a picture, which is noised part of the way.
void start_late(Request& request, const GenerateOptions& options, Problems& problems) {
  const int steps = request.schedule.steps();
  const double strength = *options.strength;
  if (!(strength > 0 && strength <= 1)) {
    problems.push_back({"strength", "--strength must be above 0 and at most 1"});
    return;
  }
  if (options.latents) {
    problems.push_back({"image", "--image and --latents-in exclude each other: give one"});
    return;
  }
  // diffusers' get_timesteps rounds the number of skipped steps down, not that of the steps that
  // run.
  const int skipped =
      static_cast<int>(steps - std::min(steps * strength, static_cast<double>(steps)));
  if (skipped == steps) {
    problems.push_back({"strength", "--strength leaves no step of --steps " +
                                        std::to_string(steps) + ": raise one of them"});
    return;
  }
  request.schedule = request.schedule.last(steps - skipped);
}

// What takes predictions of earlier steps, which had other noise than a sampler has added since.
void refuse_earlier_predictions(const GenerateOptions& options, Problems& problems) {
  const std::tuple<const char*, const char*, bool> takers[] = {
      {"skip_interval", "--skip-interval", options.skip_interval.has_value()},
      {"skip_steps", "--skip-steps", !options.skip_steps.empty()},
      {"reuse_interval", "--reuse-interval", options.reuse_interval.has_value()},
      {"guidance_prev", "--guidance-prev", options.guidance_prev.value_or(0.0) != 0}};
  for (const auto& [field, flag, is_given] : takers)
    if (is_given)
      problems.push_back({field, std::string(flag) +
                                     " does not fit a scheduler that adds noise in each step, "
                                     "because it uses earlier predictions, which had other noise: "
                                     "leave it out, or take another --scheduler"});
}

void set_schedule(Request& request, const Bundle& bundle, const GenerateOptions& options,
                  Problems& problems) {
  const int steps = *options.steps;
  // Far above any use: a typing error must not ask for gigabytes of schedule.
  if (steps > 10000) {
    problems.push_back({"steps", "--steps " + std::to_string(steps) + ": give 10000 or fewer"});
    return;
  }
  SchedulerConfig config = bundle.scheduler;
  Planner planner = nullptr;
  const bool known = collect(problems, "scheduler", [&] {
    if (options.scheduler) config = with_scheduler(config, *options.scheduler);
    planner = find_planner(config);
  });
  if (!known) return;
  const auto tokens = static_cast<int>(request.token_rows * request.token_columns);
  if (!collect(problems, "steps", [&] { request.schedule = make_schedule(config, steps, tokens); }))
    return;
  if (options.image) start_late(request, options, problems);
  if (!options.image && options.strength) {
    problems.push_back(
        {"strength", "--strength says how much of --image is forgotten: give --image too"});
  }
  request.plan = planner(request.schedule);
  if (request.adds_noise()) refuse_earlier_predictions(options, problems);
}

void set_weights(Request& request, const Bundle& bundle, const GenerateOptions& options,
                 Guidance guidance, Problems& problems) {
  const int steps = request.schedule.steps();
  if (options.ma_keep_by == "timestep")
    guidance.ma_keep =
        by_timestep(guidance.ma_keep, request.schedule, bundle.scheduler.num_train_timesteps);
  if (const auto problem = skip_steps_problem(guidance.skip_steps, steps))
    problems.push_back(*problem);
  if (const auto problem = list_problem(guidance, steps)) problems.push_back(*problem);
  request.weights = step_weights(guidance, steps);
  request.skip_tolerance = guidance.skip_tolerance;
  request.rule = guidance.rule;
  request.correction = guidance.correction;
  request.slg_layers = options.slg_layers;
  request.slg_share = options.slg_share;
  request.unconditional = std::ranges::any_of(request.weights, &StepWeights::unconditional);
  if (auto problem = rule_without_cfg(options, request.unconditional))
    problems.push_back(*std::move(problem));
}

void set_channels(Request& request, const Bundle& bundle, const GenerateOptions& options,
                  Problems& problems) {
  const MassiveActivations& found = bundle.massive_activations;
  request.channel_mask = Tensor({bundle.hidden_size}, DType::float32);
  request.ref = Tensor({bundle.hidden_size}, DType::float32);
  for (const int channel : options.ma_channels) {
    if (channel < 0 || channel >= bundle.hidden_size) {
      problems.push_back({"ma_channels", "--ma-channels " + std::to_string(channel) +
                                             " is not a channel of " + bundle.name +
                                             ": give numbers from 0 to " +
                                             std::to_string(bundle.hidden_size - 1)});
      return;
    }
    request.channel_mask.floats()[static_cast<std::size_t>(channel)] = 1.0F;
  }
  for (std::size_t i = 0; i < found.ref.size(); ++i) {
    request.ref.floats()[static_cast<std::size_t>(found.channels[i])] = found.ref[i];
  }
}

void set_vae_tile(Request& request, const Bundle& bundle, const GenerateOptions& options,
                  Problems& problems) {
  request.vae_tile = options.vae_tile;
  const int unit = 4 * bundle.latent.vae_scale_factor;  // a quarter of a tile overlaps
  if (options.vae_tile >= unit && options.vae_tile % unit == 0) return;
  problems.push_back(
      {"vae_tile", "--vae-tile must be a multiple of " + std::to_string(unit) + " pixels"});
}

}  // namespace

Request resolve(const Bundle& bundle, const GenerateOptions& given,
                std::vector<Problem>& problems) {
  Request request;
  require_graphs(bundle, given, problems);
  validate_inputs(bundle, given, problems);
  refuse_options_of_dg(given, problems);
  GenerateOptions options = with_defaults(bundle, given);
  request.asked = options;
  for (auto* picture : {&request.asked.image, &request.asked.mask, &request.asked.ma_tokens})
    if (*picture) picture->emplace();
  request.crop = crop_to_mask(bundle, options, problems);
  request.asked.references.assign(options.references.size(), {});
  set_references(request, bundle, options, problems);
  const bool sized = set_size(request, bundle, given, options, problems);
  std::string stretched;
  if (sized) {
    stretched = scale_to_drawing(request.width, request.height, bundle.size_multiple(), options);
    set_mask(request, bundle, options, problems);
  }
  const bool counted = set_images(request, bundle, options, problems);
  const std::optional<Guidance> guidance = guidance_of(bundle, options, problems);
  if (sized && counted) set_latents(request, bundle, options, problems);
  if (sized) set_schedule(request, bundle, options, problems);
  if (guidance && !request.plan.empty()) {
    set_weights(request, bundle, options, *guidance, problems);
    request.notes = unused_guidance(bundle, given, request);
    if (!stretched.empty()) request.notes.push_back(stretched);
    if (bundle.distilled && request.unconditional)
      request.notes.emplace_back(
          "the model was distilled to do without CFG, and CFG may spoil its pictures: --cfg-scale "
          "1 turns it off");
  }
  if (options.prompt_embeds && bundle.prompt) {
    collect(problems, "prompt_embeds",
            [&] { check_embeddings(bundle, *options.prompt_embeds, request.unconditional); });
  }
  set_channels(request, bundle, options, problems);
  if (sized) {
    collect(problems, "ma_tokens", [&] {
      request.token_mask = make_token_mask(options.ma_tokens ? options.ma_tokens : options.mask,
                                           request.token_rows, request.token_columns);
    });
  }
  request.masks_term = options.dg_region == "mask";
  set_vae_tile(request, bundle, options, problems);
  set_condition(request, bundle, options);
  request.image = std::move(options.image);
  return request;
}

Request resolve(const Bundle& bundle, const GenerateOptions& options) {
  std::vector<Problem> problems;
  Request request = resolve(bundle, options, problems);
  if (!problems.empty()) throw_problem(problems.front());
  return request;
}

bool Request::reuses_unconditional() const {
  return std::ranges::any_of(weights, &StepWeights::reuse_unconditional);
}

bool Request::transports() const {
  if (const auto* texts = std::get_if<PromptTexts>(&condition)) return texts->source.has_value();
  const auto* embeddings = std::get_if<PromptEmbeddings>(&condition);
  return embeddings && embeddings->source;
}
bool Request::adds_noise() const { return has_update<NoisyUpdate>(plan); }

bool Request::corrects() const { return has_update<UnipcUpdate>(plan); }

bool Request::skips() const { return std::ranges::any_of(weights, &StepWeights::skip); }

bool Request::reuses_degraded() const {
  return std::ranges::any_of(weights, &StepWeights::reuse_degraded);
}

}  // namespace intaglio
