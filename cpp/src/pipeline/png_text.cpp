// What a PNG says about its image: for Intaglio, and for tools that read what other programs write.
#include <map>
#include <sstream>
#include <string>
#include <string_view>

#include "intaglio/backend.h"
#include "intaglio/options.h"

namespace intaglio {

namespace {

// PNG ends a text at a zero byte.
std::string without_zeros(const std::string& text) {
  std::string result;
  for (const char c : text) result += c == '\0' ? std::string("\uFFFD") : std::string(1, c);
  return result;
}

std::string sampler_name(const Bundle& bundle, const GenerateOptions& options) {
  // By the type in diffusers, since bundles name that.
  static const std::map<std::string_view, const char*> names{
      {"FlowMatchEulerDiscreteScheduler", "Euler"},
      {"FlowMatchHeunDiscreteScheduler", "Heun"},
      {"DPMSolverMultistepScheduler", "DPM++ 2M"},
      {"UniPCMultistepScheduler", "UniPC"},
      {"LTXEulerAncestralRFScheduler", "Euler a"},
      {"FlowMatchLCMScheduler", "LCM"},
      {"DDIMScheduler", "DDIM"}};
  SchedulerConfig config = bundle.scheduler;
  if (options.scheduler) config = with_scheduler(config, *options.scheduler);
  return names.at(config.type) + std::string(config.sde ? " SDE" : "");
}

std::ostream& operator<<(std::ostream& stream, const Ramp& ramp) {
  if (ramp.each.size() > 2) {
    for (std::size_t i = 0; i < ramp.each.size(); ++i) stream << (i > 0 ? "," : "") << ramp.each[i];
    return stream;
  }
  stream << ramp.first;
  return ramp.first == ramp.last ? stream : stream << ":" << ramp.last;
}

// Returns the text that AUTOMATIC1111's web UI stores as "parameters": the prompt, the negative
// prompt, and a line of settings by their names there. `options` must have the bundle's defaults.
std::string parameters(const Bundle& bundle, const GenerateOptions& options, std::size_t image) {
  std::ostringstream text;
  text << *options.prompt << "\n";
  if (!options.negative_prompt.empty())
    text << "Negative prompt: " << options.negative_prompt << "\n";
  const bool own_seeds = options.seeds.size() > 1;
  text << "Steps: " << *options.steps << ", Sampler: " << sampler_name(bundle, options)
       << ", CFG scale: " << *options.cfg_scale
       << ", Seed: " << (own_seeds ? options.seeds.at(image) : options.seeds.front())
       << ", Size: " << *options.width << "x" << *options.height << ", Model: " << bundle.name;
  if (options.guidance) text << ", Guidance rule: " << *options.guidance;
  if (options.strength) text << ", Denoising strength: " << *options.strength;
  if (options.distilled_guidance) text << ", Distilled CFG Scale: " << *options.distilled_guidance;
  if (const std::int64_t count = image_count(options); !own_seeds && count > 1)
    text << ", Batch size: " << count << ", Batch pos: " << image;
  text << ", DG scale: " << *options.dg_scale << ", Version: Intaglio " INTAGLIO_VERSION;
  return text.str();
}

}  // namespace

TextEntries png_text(const Bundle& bundle, const GenerateOptions& given, std::size_t image,
                     const DeviceChoice& choice) {
  const GenerateOptions options = with_defaults(bundle, given);
  TextEntries text{{"Software", "Intaglio " INTAGLIO_VERSION}};
  if (options.prompt) {
    text.emplace_back("Description", without_zeros(*options.prompt));
    text.emplace_back("parameters", without_zeros(parameters(bundle, options, image)));
  }
  text.emplace_back("intaglio:bundle", bundle.name);
  text.emplace_back("intaglio:image", std::to_string(image));
  text.emplace_back("intaglio:options", to_json(options));
  text.emplace_back("intaglio:device", choice.device);
  text.emplace_back("intaglio:precision", choice.precision);
  std::string inputs;
  const auto add = [&](const char* name, bool given_here) {
    if (given_here) inputs += (inputs.empty() ? "" : ", ") + std::string(name);
  };
  add("image", options.image.has_value());
  add("latents", options.latents.has_value());
  add("references", !options.references.empty());
  add("mask", options.mask.has_value());
  add("ma_tokens", options.ma_tokens.has_value());
  add("prompt_embeds", options.prompt_embeds.has_value());
  if (!inputs.empty()) text.emplace_back("intaglio:inputs", inputs);
  return text;
}

}  // namespace intaglio
