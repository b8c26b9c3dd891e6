#include <algorithm>
#include <cctype>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/flags.h"
#include "cli/help_formatter.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "intaglio/error.h"
#include "intaglio/file.h"
#include "intaglio/options.h"
#include "platform/process.h"
#include "platform/terminal.h"

namespace intaglio::cli {

namespace {

namespace fs = std::filesystem;
using platform::InterruptFlag;
using Json = nlohmann::ordered_json;

struct Flags {
  RunFlags run;
  GenerateOptions options;
  fs::path output = "image.png";
  std::vector<fs::path> images;
  fs::path mask, ma_tokens, prompt_embeds, latents_in, latents_out, report;
  bool no_metadata = false;
};

void read_inputs(Flags& flags) {
  if (!flags.images.empty()) flags.options.image = read_png(flags.images.front());
  for (std::size_t i = 1; i < flags.images.size(); ++i)
    flags.options.references.push_back(read_png(flags.images[i]));
  if (!flags.mask.empty()) flags.options.mask = read_png(flags.mask);
  if (!flags.ma_tokens.empty()) flags.options.ma_tokens = read_png(flags.ma_tokens);
  if (!flags.prompt_embeds.empty())
    flags.options.prompt_embeds = load_prompt_embeds(flags.prompt_embeds);
  if (!flags.latents_in.empty()) flags.options.latents = load_npy(flags.latents_in);
}

// Every image is a PNG, which its name must not deny. Devices and pipes have any name.
void check_ending(const fs::path& output) {
  std::string ending = output.extension().string();
  std::ranges::transform(ending, ending.begin(), [](unsigned char c) { return std::tolower(c); });
  std::error_code error;
  if (ending.empty() || ending == ".png" || is_device_or_pipe(fs::status(output, error))) return;
  throw UsageError("--output " + output.string() +
                   ": images are written as PNG; end the name in .png");
}

void check_outputs(const Flags& flags) {
  if (flags.output.empty()) throw UsageError("--output is empty: give the image a name");
  check_ending(flags.output);
  // A larger batch fits no machine and is refused later, so only this many paths are checked.
  constexpr std::size_t max_checked = 1000;
  const auto count =
      static_cast<std::size_t>(std::max<std::int64_t>(image_count(flags.options), 1));
  std::vector<fs::path> paths;
  for (std::size_t i = 0; i < std::min(count, max_checked); ++i) {
    paths.push_back(numbered(flags.output, i, count));
  }
  for (const fs::path& path : {flags.latents_out, flags.report}) {
    if (!path.empty()) paths.push_back(path);
  }
  cli::check_outputs(paths);
}

Json placements(const Backend& backend) {
  Json list = Json::array();
  for (const GraphPlacement& placement : backend.placements()) {
    list.push_back({{"graph", placement.graph},
                    {"nodes", placement.nodes},
                    {"elsewhere", placement.elsewhere}});
  }
  return list;
}

// Returns what is said of the run when it has ended.
std::vector<std::string> closing_notes(const Pipeline& pipeline, const Generation& generation) {
  std::vector<std::string> notes = generation.notes;
  const std::vector<std::string> more = placement_notes(pipeline.backend());
  notes.insert(notes.end(), more.begin(), more.end());
  return notes;
}

Json report(const Flags& flags, const Pipeline& pipeline, const Generation& generation,
            std::optional<double> start_to_first_step) {
  Json seconds = Json::object();
  if (start_to_first_step) seconds["start_to_first_step"] = *start_to_first_step;
  seconds["text"] = generation.timings.text;
  seconds["denoise"] = generation.timings.denoise;
  seconds["network"] = generation.timings.network;
  seconds["vae"] = generation.timings.vae;
  seconds["total"] = generation.timings.total;
  std::vector<std::string> notes = opening_notes(pipeline);
  const std::vector<std::string> more = closing_notes(pipeline, generation);
  notes.insert(notes.end(), more.begin(), more.end());
  return {
      {"bundle", pipeline.bundle().name},
      {"backend", pipeline.backend().description()},
      {"device", pipeline.backend().choice.device},
      {"precision", pipeline.backend().choice.precision},
      {"reason", pipeline.backend().choice.reason},
      {"placements", placements(pipeline.backend())},
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
      {"evaluations", generation.evaluations},
      {"skipped_steps", generation.skipped_steps},
      {"largest_distance", generation.largest_distance},
      {"notes", notes},
  };
}

struct Drawn {
  Generation generation;
  std::optional<double> start_to_first_step;  // seconds
};

Drawn draw(const Pipeline& pipeline, const GenerateOptions& options) {
  Drawn drawn;
  {
    ProgressBar bar("denoising", "steps");
    drawn.generation = pipeline.generate(options, [&](const Step& step) {
      bar.show(step.group * step.steps + step.step + 1, step.groups * step.steps);
      return !InterruptFlag::raised();
    });
    // The time is taken here and the later stages are subtracted, because the first callback waits
    // until large files are hashed and so comes later than the first step.
    drawn.start_to_first_step = platform::seconds_since_process_start();
    if (drawn.start_to_first_step) {
      const Timings& timings = drawn.generation.timings;
      *drawn.start_to_first_step -= timings.denoise + timings.vae;
    }
  }
  // Ctrl-C after the last step must not leave files behind either.
  if (InterruptFlag::raised()) throw Interrupted("stopped during decoding: nothing was written");
  return drawn;
}

void write_outputs(const Flags& flags, const Pipeline& pipeline, const Drawn& drawn) {
  const Generation& generation = drawn.generation;
  for (std::size_t i = 0; i < generation.images.size(); ++i) {
    const fs::path path = numbered(flags.output, i, generation.images.size());
    write_png(path, generation.images[i], flags.no_metadata ? TextEntries{} : generation.texts[i]);
    print_written(path);
  }
  if (!flags.latents_out.empty()) save_npy(flags.latents_out, generation.latents);
  if (flags.report.empty()) return;
  const Json json = report(flags, pipeline, generation, drawn.start_to_first_step);
  // A note may name a path that is not UTF-8, which JSON cannot hold.
  write_file(flags.report, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

void generate(Flags& flags) {
  read_inputs(flags);
  check_outputs(flags);
  const Pipeline pipeline = open_pipeline(flags.run);
  compile(pipeline);
  const InterruptFlag interrupt;  // until all files are written, so that none is left half done
  const Drawn drawn = draw(pipeline, flags.options);
  print_notes(closing_notes(pipeline, drawn.generation));
  write_outputs(flags, pipeline, drawn);
  if (platform::error_is_terminal()) {
    const Timings& timings = drawn.generation.timings;
    std::fprintf(stderr, "%s: text %.2f s, %zu steps %.2f s, decoding %.2f s\n",
                 pipeline.backend().description().c_str(), timings.text,
                 drawn.generation.step_seconds.size(), timings.denoise, timings.vae);
  }
}

// Returns " [1]" for an option whose default is the number 1 in every bundle, and "" for an option
// whose default comes from the bundle.
std::string shown_default(const Json& defaults, const std::string& name) {
  if (!defaults.contains(name)) return "";
  const Json& value = defaults[name];
  const Json& one = value.is_array() && value.size() == 1 ? value[0] : value;
  return one.is_number() ? " [" + one.dump() + "]" : "";
}

// Adds the flags of `generate` in groups, which --help prints in the order of their first flags.
class GroupedFlags {
 public:
  GroupedFlags(CLI::App& command, GenerateOptions& options)
      : command_(command), options_(options), defaults_(Json::parse(to_json(options))) {}

  void begin_group(const char* title) { group_ = title; }

  // Begins a group with its options of GenerateOptions.
  void begin_group(const char* title, OptionGroup group) {
    begin_group(title);
    visit_options(options_, [&](const OptionInfo& info, auto& value) {
      if (info.group != group) return;
      const std::string help = info.help + shown_default(defaults_, info.name);
      add_flag(command_, flags_of(info), value, info.value, help)->group(group_);
    });
  }

  void add_switch(const char* flag, bool& value, const char* help) {
    command_.add_flag(flag, value, help)->group(group_);
  }

  void add_path(const char* flag, fs::path& path, const char* type, const char* help) {
    cli::add_path(command_, flag, path, help)->type_name(type)->group(group_);
  }

  void add_paths(const char* flag, std::vector<fs::path>& paths, const char* type,
                 const char* help) {
    cli::add_paths(command_, flag, paths, help)->type_name(type)->group(group_);
  }

 private:
  CLI::App& command_;
  GenerateOptions& options_;
  Json defaults_;
  std::string group_;
};

void add_input_flags(GroupedFlags& grouped, Flags& flags) {
  grouped.begin_group("What to draw", OptionGroup::drawn);
  grouped.add_path("--prompt-embeds", flags.prompt_embeds, "FILE.safetensors",
                   "embeddings that `intaglio embed` wrote, in place of --prompt");
  grouped.begin_group("Images", OptionGroup::images);
  grouped.begin_group("Sampling", OptionGroup::sampling);
  grouped.begin_group("Guidance", OptionGroup::guidance);
  grouped.add_path("--ma-tokens", flags.ma_tokens, "MASK.png",
                   "grey picture that limits Detail Guidance: white parts get all of it, black "
                   "parts none; --mask if not given");
  grouped.begin_group("Faster runs that are not exact", OptionGroup::reuse);
  grouped.begin_group("Start from a picture or from latents", OptionGroup::start);
  grouped.add_paths("--image", flags.images, "FILE.png",
                    "picture to start from instead of noise; the drawing has its size, or it is "
                    "scaled to --width and --height, of which one alone keeps its shape. "
                    "FLUX.2, and FLUX.1 Kontext without --strength and --mask, see it beside the "
                    "prompt instead; repeat --image for several pictures");
  grouped.add_path("--mask", flags.mask, "MASK.png",
                   "picture of the size of --image, without transparency: white parts are drawn "
                   "anew, black parts stay");
  grouped.add_path("--latents-in", flags.latents_in, "FILE.npy",
                   "initial latents instead of seeded noise, as --latents-out writes them: "
                   "(N, C, h, w), or (N, tokens, C*p*p) for a model with packed latents");
}

void add_output_flags(GroupedFlags& grouped, Flags& flags) {
  grouped.begin_group("Output");
  grouped.add_path("-o,--output", flags.output, "OUT.png",
                   "image file; several images are written to OUT-0.png, OUT-1.png, ... "
                   "[image.png]");
  grouped.add_switch("--no-metadata", flags.no_metadata,
                     "write the images without the prompt and the options");
  grouped.add_path("--latents-out", flags.latents_out, "FILE.npy", "also write the final latents");
  grouped.add_path("--report", flags.report, "FILE.json",
                   "also write the options, timings, counts and notes of the run");
}

}  // namespace

void add_generate(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("generate", "draw images from a prompt or a class");
  command->footer(
      std::string(
          "[x] is a default. The other defaults are in the bundle; `intaglio inspect BUNDLE` "
          "shows them.\n"
          "Examples:\n"
          "  intaglio generate bundle --prompt \"a dark ankle boot\" --seeds 1,2,3 -o boot.png\n"
          "  intaglio generate bundle --prompt \"a dark ankle boot\" --cfg-scale 3 --dg-scale "
          "0.5\n\n") +
      exit_code_help());
  GroupedFlags grouped(*command, flags->options);
  add_input_flags(grouped, *flags);
  add_output_flags(grouped, *flags);
  add_loop_flags(*command, flags->run);
  move_help_flag_to_end(*command);
  command->callback([flags] { generate(*flags); });
}

}  // namespace intaglio::cli
