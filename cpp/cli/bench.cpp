#include <algorithm>
#include <array>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/process.h"
#include "cli/progress.h"
#include "intaglio/error.h"
#include "intaglio/pipeline.h"
#include "intaglio/rng.h"

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
  std::vector<double> seconds;  // of the denoising loop, one a repeat
  std::vector<double> outside;  // its share outside the network, likewise
  Generation last;
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// Cost of a run in whole forwards: a row costs (m + 1) / L before the fork and the rest after it.
double forwards(const Bundle& bundle, const Generation& generation) {
  const double base = (bundle.massive_activations.block + 1.0) / bundle.blocks;
  return static_cast<double>(generation.base_rows) * base +
         static_cast<double>(generation.forked_rows) * (1.0 - base);
}

// Random numbers in the place of one prompt's embeddings: the time does not depend on them.
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

// Something to draw, in the terms of the bundle.
GenerateOptions anything(const Bundle& bundle) {
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
  const InterruptFlag interrupt;
  ProgressBar bar("measuring", "runs");
  const GenerateOptions any = anything(pipeline.bundle());
  const int total = (flags.repeats + 1) * static_cast<int>(modes.size());
  int done = 0;
  // Interleaved, so that a drifting machine is as unkind to every mode; the first round warms up.
  for (int repeat = -1; repeat < flags.repeats; ++repeat) {
    for (Mode& mode : modes) {
      GenerateOptions options = any;
      options.steps = flags.steps;
      options.batch = flags.batch;
      options.height = flags.height;
      options.width = flags.width;
      options.cfg_scale = mode.cfg_scale;
      options.cfg_window = Window{};
      options.dg_scale = mode.dg_scale;
      options.dg_window = Window{};
      options.ma_keep = 0.0;
      mode.last = pipeline.generate(options, [](const Step&) { return !InterruptFlag::raised(); });
      const Timings& timings = mode.last.timings;
      if (repeat >= 0) mode.seconds.push_back(timings.denoise);
      if (repeat >= 0) mode.outside.push_back(1.0 - timings.network / timings.denoise);
      bar.show(++done, total);
    }
  }
}

// How the arithmetic counts: a mode's forwards and copies in a step, and its time beside CFG's.
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

// Of the transformer's folder: what its graphs map into memory.
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
    // Elsewhere a run of a graph returns when it has been given to the device.
    if (pipeline.backend().choice.device == "cpu")
      rows.back()["outside_network"] = median(mode.outside);
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
               {"weights_bytes", weights_bytes(bundle)},
               {"modes", rows}};
  if (const auto peak = peak_memory_bytes()) json["peak_memory_bytes"] = *peak;
  return json;
}

// Aligned to the right; a dash where it was not measured.
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
              "forwards", "to cfg", "predicted", "/predicted", "outside net");
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
  std::vector<Mode> modes{{"baseline", 1, 0, {}, {}, {}},
                          {"cfg", 3, 0, {}, {}, {}},
                          {"dg", 1, 1, {}, {}, {}},
                          {"cfg+dg", 3, 1, {}, {}, {}}};
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
      app.add_subcommand("bench", "time the guidance modes of a bundle against each other");
  command->footer(
      "Each repeat runs every mode once, in turn, so that a drifting machine is as unkind to all; "
      "a first round warms up.\n"
      "  seconds     of the denoising loop, the median of the repeats\n"
      "  forwards    of the whole transformer in a step, for an image: a branch's row costs\n"
      "              (m + 1) / L of one before the fork and the rest after it\n"
      "  to cfg      the time beside CFG's in the same repeat, the median\n"
      "  predicted   the forwards beside CFG's: what the arithmetic says that ratio should be\n"
      "  outside net the share of the loop outside the transformer's graphs, on the CPU\n"
      "--json adds allocations and copies in a step. Compare runs of one machine only, and with "
      "nothing else running.\n"
      "Example: intaglio bench bundle --steps 4 --height 512 --width 512 --threads 2");
  add_loop_flags(*command, flags->run);
  add_flag(*command, "--steps", flags->steps, "N", "denoising steps of a run [28]");
  add_flag(*command, "--batch", flags->batch, "N", "images of a run [1]");
  add_flag(*command, "--height", flags->height, "N", "image height in pixels [the bundle's]");
  add_flag(*command, "--width", flags->width, "N", "image width in pixels [the bundle's]");
  add_flag(*command, "--repeats", flags->repeats, "N", "runs of each mode, interleaved [7]");
  command->add_flag("--json", flags->json, "print JSON");
  command->callback([flags] { bench(*flags); });
}

}  // namespace intaglio::cli
