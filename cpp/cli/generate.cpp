#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "cli/commands.h"
#include "cli/output.h"
#include "cli/process.h"
#include "cli/progress.h"
#include "intaglio/error.h"
#include "intaglio/file.h"
#include "intaglio/options.h"

namespace intaglio::cli {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Flags {
  RunFlags run;
  GenerateOptions options;
  fs::path output = "image.png";
  fs::path image, ma_tokens, prompt_embeds, latents_in, latents_out, report;
};

void read_inputs(Flags& flags) {
  if (!flags.image.empty()) flags.options.image = read_png(flags.image);
  if (!flags.ma_tokens.empty()) flags.options.ma_tokens = read_png(flags.ma_tokens);
  if (!flags.prompt_embeds.empty())
    flags.options.prompt_embeds = load_prompt_embeds(flags.prompt_embeds);
  if (!flags.latents_in.empty()) flags.options.latents = load_npy(flags.latents_in);
}

void check_outputs(const Flags& flags) {
  if (flags.output.empty()) throw UsageError("--output is empty: give the image a name");
  for (const char* other : {".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"}) {
    if (flags.output.extension() == other)
      throw UsageError("--output " + flags.output.string() +
                       ": images are written as PNG; end the name in .png");
  }
  // No machine draws more in one batch; a number typed wrongly is refused for what it is later.
  constexpr std::size_t most = 1000;
  const auto count =
      static_cast<std::size_t>(std::max<std::int64_t>(image_count(flags.options), 1));
  std::vector<fs::path> paths;
  for (std::size_t i = 0; i < std::min(count, most); ++i) {
    paths.push_back(numbered(flags.output, i, count));
  }
  for (const fs::path& path : {flags.latents_out, flags.report}) {
    if (!path.empty()) paths.push_back(path);
  }
  cli::check_outputs(paths);
}

Json report(const Flags& flags, const Pipeline& pipeline, const Generation& generation,
            std::optional<double> first_step_at) {
  Json seconds = Json::object();
  if (first_step_at) seconds["start_to_first_step"] = *first_step_at;
  seconds["text"] = generation.timings.text;
  seconds["denoise"] = generation.timings.denoise;
  seconds["network"] = generation.timings.network;
  seconds["vae"] = generation.timings.vae;
  seconds["total"] = generation.timings.total;
  return {
      {"bundle", pipeline.bundle().name},
      {"backend", pipeline.backend().description()},
      {"device", pipeline.backend().choice.device},
      {"reason", pipeline.backend().choice.reason},
      {"options", Json::parse(to_json(with_defaults(pipeline.bundle(), flags.options)))},
      {"seconds", seconds},
      {"step_seconds", generation.step_seconds},
      {"base_rows", generation.base_rows},
      {"forked_rows", generation.forked_rows},
      {"loop",
       {{"allocations", generation.loop.allocations},
        {"copies", generation.loop.copies},
        {"copied_bytes", generation.loop.copied_bytes}}},
      {"unconditional_steps", generation.unconditional_steps},
      {"degraded_steps", generation.degraded_steps},
  };
}

void generate(Flags& flags) {
  read_inputs(flags);
  check_outputs(flags);
  const Pipeline pipeline = open_pipeline(flags.run);

  const InterruptFlag interrupt;
  Generation generation;
  std::optional<double> first_step_at;
  {
    ProgressBar bar("denoising", "steps");
    generation = pipeline.generate(flags.options, [&](const Step& step) {
      bar.show(step.step + 1, step.steps);
      return !InterruptFlag::raised();
    });
    // What comes after it taken off: a first callback waits until large files are hashed.
    first_step_at = seconds_since_process_start();
    if (first_step_at) *first_step_at -= generation.timings.denoise + generation.timings.vae;
  }
  // After the last step too: nothing is written that was not waited for.
  if (InterruptFlag::raised()) throw Interrupted("stopped while decoding: nothing was written");
  print_notes(generation.notes);

  for (std::size_t i = 0; i < generation.images.size(); ++i) {
    const fs::path path = numbered(flags.output, i, generation.images.size());
    write_png(path, generation.images[i], png_text(pipeline.bundle(), flags.options, i));
    std::cout << path.string() << '\n';
  }
  if (!flags.latents_out.empty()) save_npy(flags.latents_out, generation.latents);
  if (!flags.report.empty())
    write_file(flags.report, report(flags, pipeline, generation, first_step_at).dump(2) + "\n");
  if (::isatty(STDERR_FILENO)) {
    std::fprintf(stderr, "%s: text %.2f s, %zu steps %.2f s, decoding %.2f s\n",
                 pipeline.backend().description().c_str(), generation.timings.text,
                 generation.step_seconds.size(), generation.timings.denoise,
                 generation.timings.vae);
  }
}

// What an option is where neither the call nor the bundle says: " [1]".
std::string shown_default(const Json& defaults, const std::string& name) {
  if (!defaults.contains(name)) return "";
  const Json& value = defaults[name];
  const Json& one = value.is_array() && value.size() == 1 ? value[0] : value;
  return one.is_number() ? " [" + one.dump() + "]" : "";
}

}  // namespace

void add_generate(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("generate", "draw images from a prompt or a class");
  command->footer(
      "What is not given and shows no default in brackets comes from the bundle (see `intaglio "
      "inspect BUNDLE`).\n"
      "Example: intaglio generate bundle --prompt \"a dark ankle boot\" --seeds 1,2,3 -o boot.png");
  add_loop_flags(*command, flags->run);
  const Json defaults = Json::parse(to_json(flags->options));
  visit_options(flags->options, [&](const OptionInfo& info, auto& value) {
    add_flag(*command, flags_of(info), value, info.value,
             info.help + shown_default(defaults, info.name));
  });
  const auto add_path = [&](const char* flag, fs::path& path, const char* type, const char* help) {
    command->add_option(flag, path, help)->type_name(type);
  };
  add_path("-o,--output", flags->output, "OUT.png",
           "where the image goes; several become OUT-0.png, OUT-1.png, ... [image.png]");
  add_path("--image", flags->image, "FILE.png", "start from this picture instead of noise");
  add_path("--ma-tokens", flags->ma_tokens, "MASK.png",
           "where Detail Guidance acts: white suppresses, black leaves alone");
  add_path("--prompt-embeds", flags->prompt_embeds, "FILE.safetensors",
           "what `intaglio embed` wrote, in place of --prompt");
  add_path(
      "--latents-in", flags->latents_in, "FILE.npy",
      "initial latents as --latents-out writes them, [N, C, h, w] or packed [N, tokens, C*p*p], "
      "instead of seeded noise");
  add_path("--latents-out", flags->latents_out, "FILE.npy", "write the final latents");
  add_path("--report", flags->report, "FILE.json", "write options, timings and counts");
  command->callback([flags] { generate(*flags); });
}

}  // namespace intaglio::cli
