#include <algorithm>
#include <array>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/help_formatter.h"
#include "cli/progress.h"
#include "intaglio/error.h"
#include "intaglio/pipeline.h"
#include "intaglio/rng.h"
#include "platform/process.h"
#include "platform/terminal.h"

namespace intaglio::cli {

namespace {

using Json = nlohmann::ordered_json;

struct Flags {
  RunFlags run;
  int steps = 28;
  int batch = 1;
  std::optional<int> height, width;
  int repeats = 7;
  bool json = false;
};

struct Mode {
  const char* name;
  double cfg_scale, dg_scale;
  // One value per repeat.
  std::vector<double> seconds = {};        // of the denoising loop
  std::vector<double> outside_share = {};  // of that time, outside the transformer's graphs
  Generation last = {};
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// Returns the cost of a run in forwards of the whole transformer. A batch row costs (m + 1) / L of
// a forward up to block m, where the branches fork, and the rest after it.
double forwards(const Bundle& bundle, const Generation& generation) {
  const double base = (bundle.massive_activations.block + 1.0) / bundle.blocks;
  return static_cast<double>(generation.base_rows) * base +
         static_cast<double>(generation.forked_rows) * (1.0 - base);
}

// Returns random embeddings of one prompt, which serve here because the time does not depend on the
// values.
TextConditioning random_conditioning(const Bundle& bundle) {
  TextConditioning embedding;
  Generator generator(0);
  const auto fill = [&](Role role, Tensor& tensor, std::int64_t tokens) {
    const GraphTensor* input = bundle.input(role);
    if (!input) return;
    Shape shape{1};
    const auto& axes = input->axes;
    for (std::size_t i = 1; i < axes.size(); ++i) {
      const auto* size = std::get_if<std::int64_t>(&axes[i]);
      shape.push_back(size ? *size : tokens);
    }
    tensor = Tensor(shape, DType::float32);
    generator.randn(tensor.floats());
  };
  fill(Role::text, embedding.text, bundle.prompt->max_sequence_length);
  fill(Role::text_mask, embedding.text_mask, embedding.text.dim(1));
  fill(Role::pooled, embedding.pooled, 1);
  if (embedding.text_mask.defined()) std::ranges::fill(embedding.text_mask.floats(), 1.0F);
  return embedding;
}

// Returns options that say what to draw, by class, embeddings or prompt as the bundle needs it.
GenerateOptions some_condition(const Bundle& bundle) {
  GenerateOptions options;
  if (bundle.classes) {
    options.class_label = 0;
  } else if (bundle.prompt->encoders.empty()) {
    options.prompt_embeds = PromptEmbeddings{.positive = random_conditioning(bundle),
                                             .negative = random_conditioning(bundle),
                                             .notes = {}};
  } else {
    options.prompt = "a photograph";
  }
  return options;
}

void run_modes(const Pipeline& pipeline, const Flags& flags, std::vector<Mode>& modes) {
  const platform::InterruptFlag interrupt;
  ProgressBar bar("measuring", "runs");
  const GenerateOptions condition = some_condition(pipeline.bundle());
  const int total = (flags.repeats + 1) * static_cast<int>(modes.size());
  int done = 0;
  // The modes take turns, so that a machine that becomes slower or faster affects all of them
  // alike. The first round is not measured, because caches are cold.
  for (int repeat = -1; repeat < flags.repeats; ++repeat) {
    for (Mode& mode : modes) {
      GenerateOptions options = condition;
      options.steps = flags.steps;
      options.batch = flags.batch;
      options.height = flags.height;
      options.width = flags.width;
      options.cfg_scale = mode.cfg_scale;
      options.cfg_window = Window{};
      options.dg_scale = mode.dg_scale;
      options.dg_window = Window{};
      options.ma_keep = 0.0;
      mode.last = pipeline.generate(options,
                                    [](const Step&) { return !platform::InterruptFlag::raised(); });
      const Timings& timings = mode.last.timings;
      if (repeat >= 0) {
        mode.seconds.push_back(timings.denoise);
        mode.outside_share.push_back(1.0 - timings.network / timings.denoise);
      }
      bar.show(++done, total);
    }
  }
}

// Describes a mode: its time, forwards and copies per step, and its time relative to `reference`,
// CFG.
Json describe(const Bundle& bundle, const Mode& mode, const Mode& reference) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < mode.seconds.size(); ++i)
    ratios.push_back(mode.seconds[i] / reference.seconds[i]);
  const auto steps = static_cast<double>(mode.last.step_seconds.size());
  const auto images = static_cast<double>(mode.last.images.size());
  const double ratio = median(ratios);
  const double predicted = forwards(bundle, mode.last) / forwards(bundle, reference.last);
  return {{"mode", mode.name},
          {"seconds", median(mode.seconds)},
          {"fastest", *std::ranges::min_element(mode.seconds)},
          {"slowest", *std::ranges::max_element(mode.seconds)},
          {"base_rows", mode.last.base_rows},
          {"forked_rows", mode.last.forked_rows},
          {"forwards_per_step", forwards(bundle, mode.last) / (steps * images)},
          {"ratio_to_cfg", ratio},
          {"predicted_ratio_to_cfg", predicted},
          {"ratio_to_predicted", ratio / predicted},
          {"allocations_per_step", static_cast<double>(mode.last.loop.allocations) / steps},
          {"copies_per_step", static_cast<double>(mode.last.loop.copies) / steps},
          {"copied_bytes_per_step", static_cast<double>(mode.last.loop.copied_bytes) / steps}};
}

// Returns the size of the weight files that the transformer's graphs map into memory.
std::uint64_t weights_bytes(const Bundle& bundle) {
  std::uint64_t bytes = 0;
  for (const auto& [name, size] : bundle.file_bytes) {
    if (name.starts_with("transformer/") && name.ends_with(".data")) bytes += size;
  }
  return bytes;
}

Json summarize(const Pipeline& pipeline, const Flags& flags, const std::vector<Mode>& modes) {
  const Bundle& bundle = pipeline.bundle();
  const Mode& reference = *std::ranges::find_if(
      modes, [](const Mode& mode) { return std::string("cfg") == mode.name; });
  Json rows = Json::array();
  for (const Mode& mode : modes) {
    rows.push_back(describe(bundle, mode, reference));
    // Only on the CPU does the time of a graph's run cover all of its work.
    if (pipeline.backend().choice.device == "cpu")
      rows.back()["outside_network"] = median(mode.outside_share);
  }
  Json json = {{"bundle", bundle.name},
               {"layout", name_of(bundle.layout)},
               {"block", bundle.massive_activations.block},
               {"blocks", bundle.blocks},
               {"steps", flags.steps},
               {"batch", flags.batch},
               {"height", flags.height.value_or(bundle.defaults.height)},
               {"width", flags.width.value_or(bundle.defaults.width)},
               {"repeats", flags.repeats},
               {"backend", pipeline.backend().description()},
               {"device", pipeline.backend().choice.device},
               {"precision", pipeline.backend().choice.precision},
               {"weights_bytes", weights_bytes(bundle)},
               {"modes", rows}};
  if (const auto peak = platform::peak_memory_bytes()) json["peak_memory_bytes"] = *peak;
  return json;
}

// Formats the share as a percentage, or as a dash where it was not measured.
std::string outside_network(const Json& row) {
  if (!row.contains("outside_network")) return "-";
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "%.2f%%", 100.0 * row["outside_network"].get<double>());
  return text.data();
}

void print(const Pipeline& pipeline, const Json& json) {
  const auto text = [&](const char* key) { return json[key].get<std::string>(); };
  const auto count = [&](const char* key) { return json[key].get<int>(); };
  const auto megabytes = [&](const char* key) { return json[key].get<double>() / 1e6; };
  std::printf(
      "%s, %s layout, fork after block %d of %d, %d steps, batch %d, %dx%d, %d repeats\n%s\n",
      text("bundle").c_str(), text("layout").c_str(), count("block"), count("blocks"),
      count("steps"), count("batch"), count("width"), count("height"), count("repeats"),
      pipeline.backend().description().c_str());
  std::printf("transformer weights %.1f MB", megabytes("weights_bytes"));
  if (json.contains("peak_memory_bytes"))
    std::printf(", peak memory of the process %.1f MB", megabytes("peak_memory_bytes"));
  std::printf("\n\n");
  std::printf("%-9s %9s %17s %9s %7s %10s %10s %12s\n", "mode", "seconds", "fastest-slowest",
              "forwards", "vs cfg", "predicted", "/predicted", "outside net");
  for (const Json& row : json["modes"]) {
    const auto number = [&](const char* key) { return row[key].get<double>(); };
    std::printf("%-9s %9.4f %8.4f-%.4f %9.3f %7.3f %10.3f %10.3f %12s\n",
                row["mode"].get<std::string>().c_str(), number("seconds"), number("fastest"),
                number("slowest"), number("forwards_per_step"), number("ratio_to_cfg"),
                number("predicted_ratio_to_cfg"), number("ratio_to_predicted"),
                outside_network(row).c_str());
  }
}

void bench(const Flags& flags) {
  if (flags.repeats < 1) throw UsageError("--repeats must be at least 1");
  const Pipeline pipeline = open_pipeline(flags.run);
  std::vector<Mode> modes{{.name = "baseline", .cfg_scale = 1, .dg_scale = 0},
                          {.name = "cfg", .cfg_scale = 3, .dg_scale = 0},
                          {.name = "dg", .cfg_scale = 1, .dg_scale = 1},
                          {.name = "cfg+dg", .cfg_scale = 3, .dg_scale = 1}};
  run_modes(pipeline, flags, modes);
  const Json json = summarize(pipeline, flags, modes);
  if (flags.json) {
    std::cout << json.dump(2) << std::endl;
  } else {
    print(pipeline, json);
  }
}

}  // namespace

void add_bench(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("bench", "measure the time of each guidance mode of a bundle");
  command->footer(
      "The modes are baseline (no guidance), cfg, dg and cfg+dg. Each repeat runs every mode once; "
      "a\n"
      "first round is not measured. The columns are\n"
      "  seconds      median time of the denoising loop\n"
      "  forwards     forwards of the whole transformer per step and image; a branch costs (m + 1) "
      "/ L\n"
      "               of one up to block m of L, where the branches fork, and the rest after it\n"
      "  vs cfg       median of the time divided by the time of cfg in the same repeat\n"
      "  predicted    forwards divided by the forwards of cfg, which vs cfg should come close to\n"
      "  /predicted   vs cfg divided by predicted\n"
      "  outside net  share of the loop outside the transformer's graphs, on the CPU only\n"
      "Compare only runs on the same machine, with nothing else running.\n"
      "Example: intaglio bench bundle --steps 4 --height 512 --width 512 --threads 2");
  constexpr auto run_group = "Runs";
  const auto add = [&](const char* flag, auto& value, const char* help) {
    add_flag(*command, flag, value, "N", help)->group(run_group);
  };
  add("--steps", flags->steps, "number of denoising steps of a run [28]");
  add("--batch", flags->batch, "number of images of a run [1]");
  add("--height", flags->height, "height of the images in pixels [from the bundle]");
  add("--width", flags->width, "width of the images in pixels [from the bundle]");
  add("--repeats", flags->repeats, "number of measured runs of each mode [7]");
  command
      ->add_flag("--json", flags->json,
                 "print JSON, which also has allocations and copies per step")
      ->group("Output");
  add_loop_flags(*command, flags->run);
  move_help_flag_to_end(*command);
  command->callback([flags] { bench(*flags); });
}

}  // namespace intaglio::cli
