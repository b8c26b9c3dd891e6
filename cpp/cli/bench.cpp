#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
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
  int repeats = 7;
  bool json = false;
};

struct Mode {
  const char* name;
  double cfg_scale, dg_scale;
  std::vector<double> seconds;  // of the denoising loop, one a repeat
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
PromptEmbedding random_embedding(const Bundle& bundle) {
  PromptEmbedding embedding;
  Generator generator(0);
  const auto fill = [&](const char* role, Tensor& tensor, std::int64_t tokens) {
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
  fill("text", embedding.text, bundle.prompt->max_sequence_length);
  fill("text_mask", embedding.text_mask, embedding.text.dim(1));
  fill("pooled", embedding.pooled, 1);
  if (embedding.text_mask.defined()) std::ranges::fill(embedding.text_mask.floats(), 1.0F);
  return embedding;
}

// Something to draw, in the terms of the bundle.
GenerateOptions anything(const Bundle& bundle) {
  GenerateOptions options;
  if (bundle.classes) {
    options.class_label = 0;
  } else if (bundle.prompt->encoders.empty()) {
    options.prompt_embeds = PromptEmbeds{random_embedding(bundle), random_embedding(bundle), {}};
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
      options.cfg_scale = mode.cfg_scale;
      options.cfg_window = Window{};
      options.dg_scale = mode.dg_scale;
      options.dg_window = Window{};
      options.ma_keep = 0.0;
      mode.last = pipeline.generate(options, [](const Step&) { return !InterruptFlag::raised(); });
      if (repeat >= 0) mode.seconds.push_back(mode.last.timings.denoise);
      bar.show(++done, total);
    }
  }
}

Json summarize(const Pipeline& pipeline, const Flags& flags, const std::vector<Mode>& modes) {
  const Bundle& bundle = pipeline.bundle();
  const Mode& reference = *std::ranges::find_if(
      modes, [](const Mode& mode) { return std::string("cfg") == mode.name; });
  Json rows = Json::array();
  for (const Mode& mode : modes) {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < mode.seconds.size(); ++i)
      ratios.push_back(mode.seconds[i] / reference.seconds[i]);
    rows.push_back({{"mode", mode.name},
                    {"seconds", median(mode.seconds)},
                    {"fastest", *std::ranges::min_element(mode.seconds)},
                    {"slowest", *std::ranges::max_element(mode.seconds)},
                    {"base_rows", mode.last.base_rows},
                    {"forked_rows", mode.last.forked_rows},
                    {"ratio_to_cfg", median(ratios)},
                    {"predicted_ratio_to_cfg",
                     forwards(bundle, mode.last) / forwards(bundle, reference.last)}});
  }
  return {{"bundle", bundle.name},
          {"layout", bundle.layout},
          {"block", bundle.massive_activations.block},
          {"blocks", bundle.blocks},
          {"steps", flags.steps},
          {"batch", flags.batch},
          {"repeats", flags.repeats},
          {"backend", pipeline.backend().description()},
          {"device", pipeline.backend().choice.device},
          {"modes", rows}};
}

void bench(const Flags& flags) {
  if (flags.repeats < 1) throw UsageError("--repeats must be at least 1");
  const Pipeline pipeline = open_pipeline(flags.run);
  std::vector<Mode> modes{{"baseline", 1, 0, {}, {}},
                          {"cfg", 3, 0, {}, {}},
                          {"dg", 1, 1, {}, {}},
                          {"cfg+dg", 3, 1, {}, {}}};
  run_modes(pipeline, flags, modes);
  const Json json = summarize(pipeline, flags, modes);
  if (flags.json) {
    std::cout << json.dump(2) << std::endl;
    return;
  }
  std::printf("%s, %s layout, fork after block %d of %d, %d steps, batch %d, %d repeats\n%s\n\n",
              pipeline.bundle().name.c_str(), pipeline.bundle().layout.c_str(),
              pipeline.bundle().massive_activations.block, pipeline.bundle().blocks, flags.steps,
              flags.batch, flags.repeats, pipeline.backend().description().c_str());
  std::printf("%-10s %10s %18s %12s %12s\n", "mode", "seconds", "fastest-slowest", "to cfg",
              "predicted");
  for (const Json& row : json["modes"]) {
    std::printf("%-10s %10.4f %9.4f-%.4f %12.3f %12.3f\n", row["mode"].get<std::string>().c_str(),
                row["seconds"].get<double>(), row["fastest"].get<double>(),
                row["slowest"].get<double>(), row["ratio_to_cfg"].get<double>(),
                row["predicted_ratio_to_cfg"].get<double>());
  }
}

}  // namespace

void add_bench(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("bench", "time the guidance modes of a bundle against each other");
  add_run_flags(*command, flags->run);
  add_flag(*command, "--steps", flags->steps, "N", "denoising steps of a run [28]");
  add_flag(*command, "--batch", flags->batch, "N", "images of a run [1]");
  add_flag(*command, "--repeats", flags->repeats, "N", "runs of each mode, interleaved [7]");
  command->add_flag("--json", flags->json, "print JSON");
  command->callback([flags] { bench(*flags); });
}

}  // namespace intaglio::cli
