#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/flags.h"
#include "cli/help_formatter.h"
#include "cli/output.h"
#include "intaglio/error.h"
#include "intaglio/pipeline.h"

namespace intaglio::cli {

namespace {

namespace fs = std::filesystem;

struct Flags {
  RunFlags run;
  fs::path image, output;
  std::optional<int> block;
  double sigma = 0.25;
};

void check(const Flags& flags) {
  if (flags.image.empty()) throw UsageError("--image is missing: give a picture as PNG");
  if (!flags.block) throw UsageError("--block is missing: give the block whose output is wanted");
  if (!(flags.sigma >= 0 && flags.sigma <= 1)) {
    throw UsageError("--sigma is a share of noise: give a number from 0 to 1");
  }
  if (flags.output.empty()) throw UsageError("--output is missing: give -o FILE.npy");
  if (flags.output.extension() != ".npy") {
    throw UsageError("--output " + flags.output.string() +
                     ": features are written for NumPy; end the name in .npy");
  }
  check_outputs({flags.output});
}

void check_fit(const Flags& flags, const Bundle& bundle, const Image& image) {
  const std::string folder = flags.run.bundle.string();
  if (!bundle.observed()) {
    throw UsageError(folder + " has no outputs for what blocks compute: export it again with " +
                     "--observe");
  }
  if (*flags.block < 0 || *flags.block >= bundle.blocks) {
    throw UsageError("--block " + std::to_string(*flags.block) + " does not exist: " + folder +
                     " has blocks 0 to " + std::to_string(bundle.blocks - 1));
  }
  if (bundle.check_size(image.height, image.width).empty()) return;
  const Latent& latent = bundle.latent;
  const std::string largest =
      std::to_string(latent.max_width) + "x" + std::to_string(latent.max_height);
  throw UsageError("--image " + flags.image.string() + " has " + std::to_string(image.width) + "x" +
                   std::to_string(image.height) + " pixels: scale it to " +
                   (latent.fixed_size
                        ? largest
                        : "sides that are multiples of " + std::to_string(bundle.size_multiple()) +
                              ", and at most " + largest));
}

// Returns the options of a run from the picture whose first step has the noise nearest to `sigma`:
// of the scheduler's own 100 steps for flow matching, else of all its timesteps.
GenerateOptions options_for(const Bundle& bundle, Image image, double sigma) {
  SchedulerConfig config = bundle.scheduler;
  int steps = 100;
  GenerateOptions options;
  // A step of Heun's method evaluates the model twice, and the second time with less noise.
  if (config.type.find("Heun") != std::string::npos) options.scheduler = "euler";
  if (bundle.prediction_type == PredictionType::epsilon) {
    options.scheduler = "ddim";
    steps = config.num_train_timesteps;
  }
  if (options.scheduler) config = with_scheduler(config, *options.scheduler);
  const Schedule schedule =
      make_schedule(config, steps, bundle.token_count(image.height, image.width));
  const auto first = schedule.sigmas.begin();
  const auto nearest = std::min_element(
      first, first + schedule.steps(),
      [&](float one, float other) { return std::abs(one - sigma) < std::abs(other - sigma); });
  options.steps = steps;
  // Half a step more keeps rounding away from the number of steps that are left out.
  options.strength = (steps - static_cast<double>(nearest - first) - 0.5) / steps;
  options.image = std::move(image);
  options.cfg_scale = 1.0;
  options.dg_scale = 0.0;
  if (bundle.classes) {
    options.class_label = 0;
  } else {
    options.prompt = "";
  }
  return options;
}

void write_features(const Flags& flags) {
  check(flags);
  Image image = read_png(flags.image);
  const Pipeline pipeline = open_pipeline(flags.run);
  const Bundle& bundle = pipeline.bundle();
  check_fit(flags, bundle, image);
  const std::int64_t rows = image.height / bundle.size_multiple();
  const std::int64_t columns = image.width / bundle.size_multiple();
  const GenerateOptions options = options_for(bundle, std::move(image), flags.sigma);
  compile(pipeline);
  Tensor features;
  try {
    pipeline.generate(options, [&](const Step& step) {
      features = step.hidden_states(*flags.block);
      return false;  // the first step is all that is needed
    });
  } catch (const Interrupted&) {
    if (!features.defined()) throw;
  }
  save_npy(flags.output, features.reshaped({1, rows, columns, bundle.hidden_size}));
  print_written(flags.output);
}

}  // namespace

void add_features(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "features", "write what a block computes for a picture, from an observed bundle");
  command->footer(
      "The file holds the image stream after the block, [1, rows, columns, channels] float32, for "
      "the\n"
      "noised picture with an empty prompt (class 0 for a model of classes) and seed 0.\n"
      "Example:\n"
      "  intaglio export model -o bundle --observe\n"
      "  intaglio features bundle --image boot.png --block 4 --sigma 0.25 -o boot.npy");
  constexpr auto group = "What to compute";
  add_path(*command, "--image", flags->image, "picture; required")
      ->type_name("FILE.png")
      ->group(group);
  add_flag(*command, "--block", flags->block, "K", "number of the block, from 0; required")
      ->group(group);
  add_flag(*command, "--sigma", flags->sigma, "S",
           "share of noise that is added to the picture, from 0 to 1 [0.25]")
      ->group(group);
  add_path(*command, "-o,--output", flags->output, "file to write; required")
      ->type_name("FILE.npy")
      ->group("Output");
  add_run_flags(*command, flags->run);
  move_help_flag_to_end(*command);
  command->callback([flags] { write_features(*flags); });
}

}  // namespace intaglio::cli
