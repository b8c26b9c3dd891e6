#include "pipeline/request.h"

#include <algorithm>
#include <cmath>

#include "intaglio/error.h"
#include "intaglio/options.h"
#include "pipeline/condition.h"

namespace intaglio {

namespace {

void set_size(Request& request, const Bundle& bundle, const GenerateOptions& options) {
  const auto& image = options.image;
  request.height = *options.height;
  request.width = *options.width;
  const int unit = bundle.latent.vae_scale_factor * bundle.patch_size;
  const int largest_height = bundle.latent.max_height, largest_width = bundle.latent.max_width;
  if (bundle.latent.fixed_size &&
      (request.height != largest_height || request.width != largest_width)) {
    throw UsageError(bundle.name + " draws " + std::to_string(largest_width) + "x" +
                     std::to_string(largest_height) + " pixels only, not " +
                     std::to_string(request.width) + "x" + std::to_string(request.height) +
                     ": leave --height and --width out" +
                     (image ? ", and scale --image to that" : ""));
  }
  const auto check = [&](const char* flag, int size, int largest) {
    if (size < unit || size % unit != 0 || size > largest) {
      throw UsageError(std::string(flag) + " " + std::to_string(size) + " does not fit " +
                       bundle.name + ": give a multiple of " + std::to_string(unit) + " from " +
                       std::to_string(unit) + " to " + std::to_string(largest));
    }
  };
  check("--height", request.height, largest_height);
  check("--width", request.width, largest_width);
  if (image && (image->height != request.height || image->width != request.width)) {
    throw UsageError("--image is " + std::to_string(image->width) + "x" +
                     std::to_string(image->height) + " pixels but --width and --height ask for " +
                     std::to_string(request.width) + "x" + std::to_string(request.height) +
                     ": give one size");
  }
  request.rows = request.height / bundle.latent.vae_scale_factor;
  request.columns = request.width / bundle.latent.vae_scale_factor;
  request.token_rows = request.rows / bundle.patch_size;
  request.token_columns = request.columns / bundle.patch_size;
}

void set_images(Request& request, const Bundle& bundle, const GenerateOptions& options) {
  request.seeds = options.seeds;
  request.images = image_count(options);
  if (options.batch < 1 || request.images < 1) throw UsageError("--batch must be at least 1");
  if (options.seeds.empty()) throw UsageError("--seeds is empty: give at least one seed");
  if (options.batch != 1 && options.batch != request.images) {
    throw UsageError("--seeds gives " + std::to_string(request.images) +
                     " images but --batch asks for " + std::to_string(options.batch) +
                     ": leave --batch out");
  }
  const Latent& latent = bundle.latent;
  request.latent_shape = {request.images, latent.channels, request.rows, request.columns};
  if (latent.packed) {
    request.latent_shape = {request.images, request.token_rows * request.token_columns,
                            latent.channels * bundle.patch_size * bundle.patch_size};
  }
  if (!options.latents) return;
  const Tensor& latents = *options.latents;
  const Shape& expected = request.latent_shape;
  if (latents.dtype() != DType::float32 || latents.shape() != expected) {
    throw InputError("the given latents have shape " + to_string(latents.shape()) + " where " +
                     to_string(expected) +
                     " float32 is needed: change them, or --batch, --height and --width");
  }
  if (!std::ranges::all_of(latents.floats(), [](float x) { return std::isfinite(x); })) {
    throw InputError("the given latents hold NaN or infinity: give finite numbers");
  }
}

void set_guidance(Request& request, const GenerateOptions& options) {
  if (options.reuse_window && !options.reuse_interval)
    throw UsageError("--reuse-window says where --reuse-interval holds: give --reuse-interval too");
  request.guidance = {*options.cfg_scale,
                      *options.cfg_window,
                      *options.dg_scale,
                      *options.dg_window,
                      *options.ma_keep,
                      options.reuse_interval.value_or(1.0),
                      options.reuse_window.value_or(Window{})};
  validate(request.guidance);
}

// An image is noised part of the way, and denoised from there.
void skip_steps(Request& request, const GenerateOptions& options) {
  const int steps = request.schedule.steps();
  const double strength = *options.strength;
  if (!(strength > 0 && strength <= 1))
    throw UsageError("--strength must be above 0 and at most 1");
  if (options.latents) throw UsageError("--image and --latents-in exclude each other: give one");
  // diffusers' get_timesteps, which cuts the number of steps left out, not of those that run.
  const int skipped =
      static_cast<int>(steps - std::min(steps * strength, static_cast<double>(steps)));
  if (skipped == steps)
    throw UsageError("--strength leaves no step of --steps " + std::to_string(steps) +
                     ": raise one of them");
  request.schedule = request.schedule.last(steps - skipped);
}

void set_schedule(Request& request, const Bundle& bundle, const GenerateOptions& options) {
  const int steps = *options.steps;
  // Far above any use; a slip of the finger should not ask for gigabytes of schedule.
  if (steps > 10000) throw UsageError("steps " + std::to_string(steps) + ": give 10000 or fewer");
  SchedulerConfig config = bundle.scheduler;
  if (options.scheduler) config.type = scheduler_type(*options.scheduler, bundle.prediction_type);
  const Planner planner = find_planner(config.type);
  request.schedule =
      make_schedule(config, steps, static_cast<int>(request.token_rows * request.token_columns));
  if (options.image) skip_steps(request, options);
  if (!options.image && options.strength)
    throw UsageError("--strength says how much of --image is forgotten: give --image too");
  request.plan = planner(request.schedule);
}

void set_channels(Request& request, const Bundle& bundle, const GenerateOptions& options) {
  const MassiveActivations& found = bundle.massive_activations;
  request.mask = Tensor({bundle.channels}, DType::float32);
  request.ref = Tensor({bundle.channels}, DType::float32);
  const std::vector<int>& channels =
      options.ma_channels.empty() ? found.channels : options.ma_channels;
  for (const int channel : channels) {
    if (channel < 0 || channel >= bundle.channels) {
      throw UsageError("--ma-channels " + std::to_string(channel) + " is not a channel of " +
                       bundle.name + ": give numbers from 0 to " +
                       std::to_string(bundle.channels - 1));
    }
    request.mask.floats()[static_cast<std::size_t>(channel)] = 1.0F;
  }
  for (std::size_t i = 0; i < found.ref.size(); ++i) {
    request.ref.floats()[static_cast<std::size_t>(found.channels[i])] = found.ref[i];
  }
}

// Mean brightness of the picture's pixels under each token, 0 to 1.
void set_tokens(Request& request, const GenerateOptions& options) {
  request.suppression = Tensor({request.token_rows * request.token_columns}, DType::float32);
  const auto suppression = request.suppression.floats();
  std::ranges::fill(suppression, 1.0F);
  if (!options.ma_tokens) return;
  const Image& picture = *options.ma_tokens;
  if (picture.height < request.token_rows || picture.width < request.token_columns) {
    throw InputError("the picture for --ma-tokens is smaller than the token grid of " +
                     std::to_string(request.token_columns) + "x" +
                     std::to_string(request.token_rows) + ": give a larger one");
  }
  for (std::int64_t row = 0; row < request.token_rows; ++row) {
    for (std::int64_t column = 0; column < request.token_columns; ++column) {
      const std::int64_t top = row * picture.height / request.token_rows;
      const std::int64_t bottom = (row + 1) * picture.height / request.token_rows;
      const std::int64_t left = column * picture.width / request.token_columns;
      const std::int64_t right = (column + 1) * picture.width / request.token_columns;
      double sum = 0;
      for (std::int64_t y = top; y < bottom; ++y) {
        for (std::int64_t i = (y * picture.width + left) * 3; i < (y * picture.width + right) * 3;
             ++i) {
          sum += picture.pixels[static_cast<std::size_t>(i)];
        }
      }
      const double mean =
          sum / (255.0 * 3.0 * static_cast<double>((bottom - top) * (right - left)));
      suppression[static_cast<std::size_t>(row * request.token_columns + column)] =
          static_cast<float>(mean);
    }
  }
}

}  // namespace

Request resolve(const Bundle& bundle, const GenerateOptions& given) {
  const GenerateOptions options = with_defaults(bundle, given);
  if (!bundle.vae_decoder)
    throw InputError(bundle.folder.string() +
                     " has no VAE decoder, which every picture needs: export it again from a model "
                     "that has one");
  if (options.image && !bundle.vae_encoder)
    throw InputError(bundle.folder.string() +
                     " has no VAE encoder, which --image needs: export it again");
  Request request;
  check_condition(bundle, given);
  request.class_label = options.class_label.value_or(0);
  request.distilled_guidance = static_cast<float>(options.distilled_guidance.value_or(0));
  set_size(request, bundle, options);
  set_images(request, bundle, options);
  set_guidance(request, options);
  set_schedule(request, bundle, options);
  request.weights = step_weights(request.guidance, request.schedule.steps());
  request.unconditional = std::ranges::any_of(request.weights, &StepWeights::unconditional);
  if (options.prompt_embeds) check_embeds(bundle, *options.prompt_embeds, request.unconditional);
  set_channels(request, bundle, options);
  set_tokens(request, options);
  const int tile_unit = 4 * bundle.latent.vae_scale_factor;  // a quarter of it overlaps
  if (options.vae_tile < tile_unit || options.vae_tile % tile_unit != 0) {
    throw UsageError("--vae-tile must be a multiple of " + std::to_string(tile_unit) + " pixels");
  }
  return request;
}

}  // namespace intaglio
