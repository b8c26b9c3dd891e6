#include "intaglio/options.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "core/nearest.h"
#include "pipeline/references.h"
#include "pipeline/skipped_layers.h"

namespace intaglio {

namespace {

using Json = nlohmann::ordered_json;

Json pair(double first, double second) {
  return first == second ? Json(first) : Json::array({first, second});
}

Json value_of(const Ramp& ramp) {
  return ramp.each.empty() ? pair(ramp.first, ramp.last) : Json(ramp.each);
}
Json value_of(const Window& window) { return Json::array({window.start, window.end}); }
template <typename T>
Json value_of(const T& value) {
  return value;
}
template <typename T>
Json value_of(const std::optional<T>& value) {
  return value ? value_of(*value) : Json();
}

// Returns the bundle's schedule for the run, or null.
const SkipSchedule* skip_schedule(const Bundle& bundle, const GenerateOptions& options) {
  if (options.image) return nullptr;  // which does not run all steps
  SchedulerConfig config = bundle.scheduler;
  try {
    if (options.scheduler) config = with_scheduler(config, *options.scheduler);
  } catch (const UsageError&) {  // of a name that resolve() refuses
    return nullptr;
  }
  const auto found = std::ranges::find_if(bundle.skipping, [&](const SkipSchedule& schedule) {
    return schedule.steps == options.steps && schedule.scheduler == config.type && !config.sde;
  });
  return found == bundle.skipping.end() ? nullptr : &*found;
}

// Returns height and width that are given, in the shape of the picture if one of them is, or else
// its size in whole cells.
std::pair<int, int> size_like(const Bundle& bundle, const Image& image,
                              const GenerateOptions& given) {
  const int unit = bundle.size_multiple();
  const auto whole = [&](std::int64_t side) {
    return static_cast<int>(std::max<std::int64_t>(unit, side - side % unit));
  };
  const auto follow = [&](std::int64_t other, int own, int others) {
    return whole((other * own + others / 2) / std::max(others, 1) + unit / 2);
  };
  if (given.height && given.width) return {*given.height, *given.width};
  if (given.height) return {*given.height, follow(*given.height, image.width, image.height)};
  if (given.width) return {follow(*given.width, image.height, image.width), *given.width};
  return {whole(image.height), whole(image.width)};
}

// Puts what the bundle has for --skip auto in its place. What makes no sense stays, and is refused.
void resolve_skip(const Bundle& bundle, GenerateOptions& options) {
  const bool alone = !options.skip_interval && !options.skip_window && options.skip_steps.empty() &&
                     !options.skip_tolerance;
  if (options.skip != "auto" || !alone) return;
  options.skip.reset();
  if (const SkipSchedule* schedule = skip_schedule(bundle, options)) {
    options.skip_steps = schedule->skipped;
    options.skip_tolerance = schedule->tolerance;
  }
}

// Returns the flag that does what diffusers' pipelines or OpenAI's API call `name`, or nothing.
std::string flag_of_diffusers(const std::string& name) {
  static const std::map<std::string, std::string> flags{
      {"guidance_scale", "--cfg-scale, or --distilled-guidance where the model takes it"},
      {"true_cfg_scale", "--cfg-scale"},
      {"cfg_normalization", "--guidance-normalization"},
      {"num_inference_steps", "--steps"},
      {"num_images_per_prompt", "--batch"},
      {"padding_mask_crop", "--mask-padding"},
      {"generator", "--seed"},
      {"size", "--width and --height"}};
  const auto found = flags.find(name);
  return found == flags.end() ? "" : found->second;
}

std::string with_underscores(std::string name) {
  std::ranges::replace(name, '-', '_');
  return name;
}

}  // namespace

std::string flags_of(const OptionInfo& info) {
  if (info.flags) return info.flags;
  std::string flag = std::string("--") + info.name;
  std::ranges::replace(flag, '_', '-');
  return flag;
}

std::string meant_option(const std::string& name, const std::vector<std::string>& names,
                         const std::string& before) {
  const std::string plain = with_underscores(name), flag = flag_of_diffusers(plain);
  if (!flag.empty()) return ": use " + flag;
  for (const std::string& known : names)
    if (with_underscores(known) == plain) return ": use " + before + known;
  return did_you_mean(name, names, before);
}

std::int64_t image_count(const GenerateOptions& options) {
  if (options.seeds.size() > 1) return static_cast<std::int64_t>(options.seeds.size());
  if (!options.latents || options.batch != 1 || options.latents->shape().empty()) {
    return options.batch;
  }
  return std::max<std::int64_t>(options.latents->dim(0), 1);  // 0 is refused for its shape
}

GenerateOptions with_defaults(const Bundle& bundle, GenerateOptions options) {
  const Defaults& defaults = bundle.defaults;
  const auto fill = [](auto& option, const auto& value) {
    if (!option) option = value;
  };
  if (bundle.references && options.image && !options.strength && !options.mask) {
    options.references.insert(options.references.begin(), *std::move(options.image));
    options.image.reset();
  }
  fill(options.steps, defaults.steps);
  // As in FLUX.2's pipelines. Those with sizes of their own draw their default.
  if (bundle.references && bundle.references->sizes.empty() && !options.references.empty()) {
    const Image& first = options.references.front();
    const auto [width, height] = reference_size(bundle, first.width, first.height);
    fill(options.height, height);
    fill(options.width, width);
  }
  // With padding a part of the picture is drawn, which is scaled to the size that is drawn.
  if (options.image && !options.mask_padding && !bundle.latent.fixed_size) {
    std::tie(options.height, options.width) = size_like(bundle, *options.image, options);
  }
  fill(options.height, defaults.height);
  fill(options.width, defaults.width);
  fill(options.cfg_scale, defaults.guidance.cfg_scale);
  fill(options.distilled_guidance, defaults.distilled_guidance);
  if (options.image) fill(options.strength, 0.6);
  fill(options.cfg_window, defaults.guidance.cfg_window);
  const bool transports = options.transport_from.has_value();
  const bool has_dg = !skips_layers(options) && !transports;
  fill(options.dg_scale, has_dg ? defaults.guidance.dg_scale : Ramp(0.0));
  fill(options.dg_window, transports ? Window{} : defaults.guidance.dg_window);
  fill(options.ma_keep, transports ? Ramp(0.0) : defaults.guidance.ma_keep);
  resolve_skip(bundle, options);
  if (options.skip_interval || !options.skip_steps.empty())
    fill(options.skip_tolerance, Guidance{}.skip_tolerance);
  if (options.ma_channels.empty()) options.ma_channels = bundle.massive_activations.channels;
  return options;
}

std::string to_json(const GenerateOptions& options) {
  Json json = Json::object();
  visit_options(options, [&](const OptionInfo& info, const auto& value) {
    if (Json item = value_of(value); !item.is_null()) json[info.name] = std::move(item);
  });
  return json.dump();
}

}  // namespace intaglio
