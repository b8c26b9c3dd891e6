// Compares what validate() says of a request with the error that generate() would throw.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "intaglio/validate.h"
#include "manifest_json.h"
#include "pipeline/request.h"

namespace intaglio {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

GenerateOptions good_options() {
  GenerateOptions options;
  options.prompt = "a boot";
  return options;
}

std::vector<std::string> fields(const Bundle& bundle, const GenerateOptions& options) {
  std::vector<std::string> names;
  for (const Problem& problem : validate(bundle, options)) names.push_back(problem.field);
  return names;
}

TEST(ValidateOptions, FindsNothingWrongWithWhatRuns) {
  EXPECT_THAT(validate(drawable("forked"), good_options()), IsEmpty());
  GenerateOptions options = good_options();
  options.height = 96;
  options.width = 16;
  options.dg_window = Window{0.25, 0.5};
  options.scheduler = "dpmpp-2m";
  EXPECT_THAT(validate(drawable("dual"), options), IsEmpty());
}

TEST(ValidateOptions, NamesEveryFieldThatIsWrong) {
  GenerateOptions options;
  options.height = 24;  // not a multiple of 16
  options.width = 80;   // above the largest
  options.steps = 0;    // not checked while the size is wrong
  options.batch = 0;
  options.cfg_window = Window{0.5, 0.5};
  options.dg_window = Window{0.7, 0.2};
  options.ma_keep = -2.0;
  options.ma_channels = {32};
  options.vae_tile = 3;
  EXPECT_THAT(fields(drawable("forked"), options),
              ElementsAre("prompt", "height", "width", "batch", "cfg_window", "dg_window",
                          "ma_keep", "ma_channels", "vae_tile"));
}

TEST(ValidateOptions, SaysByFieldWhatAnErrorSaysByFlag) {
  const Bundle bundle = drawable("forked");
  const auto expect = [&](auto change, const std::string& field, const std::string& message,
                          const std::string& thrown) {
    GenerateOptions options = good_options();
    change(options);
    const std::vector<Problem> problems = validate(bundle, options);
    ASSERT_EQ(problems.size(), 1U) << message;
    EXPECT_EQ(problems.front().field, field);
    EXPECT_EQ(problems.front().message, message);
    EXPECT_THAT([&] { resolve(bundle, options); },
                testing::ThrowsMessage<UsageError>(HasSubstr(thrown)));
  };
  expect([](auto& o) { o.height = 24; }, "height",
         "height 24 does not fit small: give a multiple of 16 from 16 to 96",
         "--height 24 does not fit small");
  expect([](auto& o) { o.seeds = {1, 2}, o.batch = 3; }, "seeds",
         "seeds gives 2 images but batch asks for 3: leave batch out",
         "--seeds gives 2 images but --batch asks for 3");
  expect([](auto& o) { o.dg_window = Window{0.7, 0.2}; }, "dg_window",
         "dg_window 0.7:0.2 holds no part of the run: give start < end, both within 0..1",
         "--dg-window 0.7:0.2 holds no part");
  expect([](auto& o) { o.class_label = 1; }, "class_label",
         "class_label does not fit: small is drawn by prompt, give prompt TEXT",
         "--class does not fit");
  expect([](auto& o) { o.strength = 0.5; }, "strength",
         "strength says how much of image is forgotten: give image too", "--strength says");
  expect([](auto& o) { o.scheduler = "ddim"; }, "scheduler",
         "scheduler \"ddim\" does not fit a model that predicts velocity: use one of euler, heun, "
         "dpmpp-2m, dpmpp-2m-sde, unipc, euler-ancestral, lcm",
         "scheduler \"ddim\"");
  expect([](auto& o) { o.steps = 0; }, "steps", "steps 0: give 1 or more", "steps 0");
  expect([](auto& o) { o.reuse_window = Window{}; }, "reuse_window",
         "reuse_window says where reuse_interval holds: give reuse_interval too",
         "--reuse-window says");
  expect([](auto& o) { o.skip_window = Window{}; }, "skip_window",
         "skip_window says where skip_interval holds: give skip_interval too",
         "--skip-window says");
  expect([](auto& o) { o.skip_tolerance = 0.1; }, "skip_tolerance",
         "skip_tolerance says how far a skipped step may be off: give skip_interval or skip_steps "
         "too",
         "--skip-tolerance says");
  expect([](auto& o) { o.skip = "always"; }, "skip",
         "skip always is unknown: give auto, an interval with skip_interval, or steps with "
         "skip_steps",
         "--skip always is unknown");
  expect([](auto& o) { o.skip = "auto", o.skip_interval = 2.0; }, "skip",
         "skip auto takes the bundle's schedule: leave out skip_interval, skip_window, skip_steps "
         "and skip_tolerance, or skip",
         "--skip auto takes");
  expect([](auto& o) { o.skip_steps = {3}, o.skip_interval = 2.0; }, "skip_steps",
         "skip_steps names the steps: leave out skip_interval and skip_window, or skip_steps",
         "--skip-steps names");
  expect([](auto& o) { o.skip_steps = {-1}; }, "skip_steps",
         "skip_steps -1 is not a step: give numbers from 0", "--skip-steps -1");
}

TEST(ValidateOptions, StepsThatCannotBeSkippedAreRefused) {
  const Bundle bundle = drawable("forked");
  const auto expect = [&](std::vector<int> skipped, int steps, const char* message) {
    GenerateOptions options = good_options();
    options.skip_steps = std::move(skipped);
    options.steps = steps;
    EXPECT_THAT([&] { resolve(bundle, options); }, testing::ThrowsMessage<UsageError>(message));
  };
  const std::string range = " cannot be skipped in a run of 8 steps: give numbers from 3 to 7";
  expect({3, 20}, 8, ("--skip-steps 20" + range).c_str());
  expect({8}, 8, ("--skip-steps 8" + range).c_str());
  expect({2, 4}, 8, ("--skip-steps 2" + range).c_str());
  expect(
      {3}, 3,
      "--skip-steps 3 cannot be skipped in a run of 3 steps, since the first 3 always run: leave "
      "it out, or give more --steps");
  expect({4, 6, 4}, 8, "--skip-steps 4 is given twice: give each step once");
}

TEST(ValidateOptions, SkipAutoIsTheBundlesScheduleOfTheRun) {
  Bundle bundle = drawable("forked");
  bundle.skipping = {{28, bundle.scheduler.type, {4, 6, 7}, 0.05, {}, {}, {}},
                     {28, "FlowMatchHeunDiscreteScheduler", {3}, 0.1, {}, {}, {}}};
  GenerateOptions options = good_options();
  options.skip = "auto";
  options.steps = 28;
  const GenerateOptions asked = resolve(bundle, options).asked;
  EXPECT_FALSE(asked.skip) << "an image's options say what it was";
  EXPECT_THAT(asked.skip_steps, ElementsAre(4, 6, 7));
  EXPECT_EQ(asked.skip_tolerance, 0.05);
  EXPECT_THAT(resolve(bundle, options).notes, testing::IsEmpty());
  options.scheduler = "heun";
  EXPECT_EQ(resolve(bundle, options).asked.skip_steps, std::vector{3});
  options.steps = 27;
  EXPECT_THAT(resolve(bundle, options).asked.skip_steps, testing::IsEmpty());
  EXPECT_THAT(resolve(bundle, options).notes,
              testing::ElementsAre(HasSubstr("no schedule for 27 steps")));
}

TEST(ValidateOptions, LeavesCommandsInBackticksAsTheyAre) {
  GenerateOptions options;
  options.prompt_embeds.emplace();
  options.negative_prompt = "x";
  EXPECT_THAT(validate(drawable("forked"), options).front().message,
              HasSubstr("see `intaglio embed --help`"));
}

TEST(ValidateOptions, KeepsTheKindOfError) {
  Bundle bundle = drawable("forked");
  GenerateOptions options = good_options();
  options.latents = Tensor({1, 4, 2, 2}, DType::float32);
  const std::vector<Problem> problems = validate(bundle, options);
  ASSERT_EQ(problems.size(), 1U);
  EXPECT_EQ(problems.front().field, "latents");
  EXPECT_EQ(problems.front().code, ExitCode::bad_input);
  EXPECT_THROW(resolve(bundle, options), InputError);
  bundle.vae_decoder.reset();
  EXPECT_THAT(fields(bundle, good_options()), ElementsAre("bundle"));
}

TEST(WithFieldNames, LeavesCommandsQuotedTextAndPathsAlone) {
  const auto named = [](const std::string& message) { return with_field_names(message); };
  EXPECT_EQ(named("--dg-scale 1: leave --class out"), "dg_scale 1: leave class_label out");
  EXPECT_EQ(named("give one (--seed or --seeds)"), "give one (seeds or seeds)");
  EXPECT_EQ(named("run `intaglio embed --prompt X`, or --prompt"),
            "run `intaglio embed --prompt X`, or prompt");
  EXPECT_EQ(named(R"("a --prompt" has --steps)"), R"("a --prompt" has steps)");
  EXPECT_EQ(named("/a/--steps and b--steps and --stepsize"),
            "/a/--steps and b--steps and --stepsize");
  EXPECT_EQ(named("export with --dtype and --device"), "export with --dtype and device");
}

TEST(CheckSize, KnowsMultiplesTheLargestAndTheOnlySize) {
  Bundle bundle = drawable("forked");  // a patch is 16 pixels; 96 x 64 is the largest
  EXPECT_EQ(bundle.size_multiple(), 16);
  EXPECT_EQ(bundle.token_count(96, 64), 24);
  const auto wrong = [&](int height, int width) {
    std::string sides;
    for (const Problem& problem : bundle.check_size(height, width)) sides += problem.field + " ";
    return sides;
  };
  EXPECT_EQ(wrong(96, 64), "");
  EXPECT_EQ(wrong(16, 48), "");
  EXPECT_EQ(wrong(112, 64), "height ");
  EXPECT_EQ(wrong(96, 80), "width ");
  EXPECT_EQ(wrong(0, -16), "height width ");
  EXPECT_EQ(wrong(std::numeric_limits<int>::min(), std::numeric_limits<int>::max()),
            "height width ");
  bundle.latent.fixed_size = true;
  EXPECT_EQ(wrong(96, 64), "");
  EXPECT_EQ(wrong(96, 48), "width ");
  EXPECT_EQ(wrong(16, 16), "height ");
}

}  // namespace
}  // namespace intaglio
