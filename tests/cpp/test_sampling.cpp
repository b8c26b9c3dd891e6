#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "golden.h"
#include "intaglio/error.h"
#include "intaglio/sampling.h"
#include "plan_runner.h"
#include "sampling/plan.h"
#include "toy_model.h"

namespace intaglio {
namespace {

constexpr const char* kEuler = "FlowMatchEulerDiscreteScheduler";
constexpr const char* kHeun = "FlowMatchHeunDiscreteScheduler";
constexpr const char* kDpm = "DPMSolverMultistepScheduler";
constexpr const char* kDdim = "DDIMScheduler";

SchedulerConfig config_of(const std::string& type) {
  SchedulerConfig config;
  config.type = type;
  if (type == kDdim) config.prediction_type = PredictionType::epsilon;
  return config;
}

// Runs the toy model and records the points at which it was called.
struct ToyRun {
  std::vector<float> x;
  std::vector<StepPoint> calls;
  int done = 0;

  ToyRun(const std::string& type, const Schedule& schedule, std::vector<float> start,
         const OnStep& on_step = {}, PredictionType prediction_type = PredictionType::velocity)
      : x(std::move(start)) {
    const Model model = [&](std::span<const float> at, const StepPoint& point,
                            std::span<float> prediction) {
      calls.push_back(point);
      for (std::size_t i = 0; i < at.size(); ++i) {
        prediction[i] = prediction_type == PredictionType::epsilon
                            ? epsilon(at[i], point)
                            : velocity(at[i], point.timestep);
      }
    };
    done = run_plan(find_planner(config_of(type))(schedule), prediction_type, model, x, on_step);
  }
};

TEST(Schedule, EqualsDiffusers) {
  for (const auto& golden : golden_json("schedules.json")) {
    const Schedule schedule =
        make_schedule(config_from(golden["config"]), golden["steps"], golden["image_seq_len"]);
    const auto timesteps = golden["timesteps"].get<std::vector<float>>();
    SCOPED_TRACE(golden["config"].dump() + ", steps " + golden["steps"].dump());
    ASSERT_LE(largest_difference(schedule.sigmas, golden["sigmas"].get<std::vector<float>>()),
              1e-6);
    ASSERT_LE(largest_difference(schedule.alphas, golden["alphas"].get<std::vector<float>>()),
              1e-6);
    ASSERT_EQ(schedule.timesteps.size(), timesteps.size());
    for (std::size_t i = 0; i < timesteps.size(); ++i) {
      ASSERT_NEAR(schedule.timesteps[i], timesteps[i], 1e-6 * std::abs(timesteps[i]));
    }
  }
}

TEST(Schedule, HeunTakesTheDynamicShiftOfEuler) {
  SchedulerConfig config = config_of(kHeun);
  config.use_dynamic_shifting = true;
  const Schedule heun = make_schedule(config, 6, 900);
  config.type = kEuler;
  EXPECT_EQ(heun.sigmas, make_schedule(config, 6, 900).sigmas);
}

TEST(Schedule, LastKeepsTheEnd) {
  const Schedule all = make_schedule({}, 5, 64);
  const Schedule tail = all.last(2);
  EXPECT_EQ(tail.sigmas, (std::vector<float>{all.sigmas[3], all.sigmas[4], all.sigmas[5]}));
  EXPECT_EQ(tail.timesteps, (std::vector<float>{all.timesteps[3], all.timesteps[4]}));
  EXPECT_EQ(tail.alphas, (std::vector<float>{all.alphas[3], all.alphas[4], all.alphas[5]}));
  EXPECT_TRUE(tail.end_sigmas.empty());
  EXPECT_EQ(all.last(5).sigmas, all.sigmas);
  const Schedule ddim = make_schedule(config_of(kDdim), 6, 0);
  EXPECT_EQ(ddim.last(1).end_sigmas, std::vector<float>{ddim.end_sigmas[5]});
  EXPECT_EQ(ddim.last(1).end_alphas, std::vector<float>{ddim.end_alphas[5]});
  EXPECT_EQ(all.last(0).steps(), 0);
  EXPECT_THROW(all.last(6), UsageError);
  EXPECT_THROW(all.last(-1), UsageError);
}

TEST(Schedule, RefusesWhatMakesNoSense) {
  EXPECT_THROW(make_schedule({}, 0, 64), UsageError);
  EXPECT_THROW(make_schedule({}, -3, 64), UsageError);
  EXPECT_THROW(make_schedule(config_of("PNDMScheduler"), 4, 64), UsageError);
  const auto refused = [](auto change, int steps) {
    SchedulerConfig config;
    change(config);
    EXPECT_THROW(make_schedule(config, steps, 64), UsageError);
  };
  refused([](auto& c) { c.shift = 0.0; }, 4);
  refused([](auto& c) { c.shift = std::numeric_limits<double>::infinity(); }, 4);
  refused([](auto& c) { c.shift = std::numeric_limits<double>::quiet_NaN(); }, 4);
  refused([](auto& c) { c.shift_terminal = 1.0; }, 4);
  refused([](auto& c) { c.shift_terminal = 0.1; }, 1);
  refused([](auto& c) { c.time_shift_type = "cubic"; }, 4);
  refused([](auto& c) { c.num_train_timesteps = 0; }, 4);
  refused([](auto& c) { c.prediction_type = PredictionType::epsilon; }, 4);
  refused([](auto& c) { c.type = kDdim; }, 4);
  const auto epsilon_refused = [&](auto change, int steps) {
    refused(
        [&](auto& c) { c.type = kDdim, c.prediction_type = PredictionType::epsilon, change(c); },
        steps);
  };
  epsilon_refused([](auto&) {}, 1001);
  epsilon_refused([](auto& c) { c.type = kDpm; }, 1001);
  epsilon_refused([](auto& c) { c.beta_end = 1.0; }, 4);
  epsilon_refused([](auto& c) { c.beta_start = std::numeric_limits<double>::quiet_NaN(); }, 4);
  epsilon_refused([](auto& c) { c.beta_schedule = "sigmoid"; }, 4);
  epsilon_refused([](auto& c) { c.timestep_spacing = "uniform"; }, 4);
  epsilon_refused([](auto& c) { c.steps_offset = 999; }, 4);
  epsilon_refused([](auto& c) { c.steps_offset = std::numeric_limits<int>::max(); }, 4);
  epsilon_refused([](auto& c) { c.num_train_timesteps = std::numeric_limits<int>::max(); }, 4);
  refused(
      [](auto& c) { c.use_dynamic_shifting = true, c.max_image_seq_len = c.base_image_seq_len; },
      4);
  refused([](auto& c) { c.use_dynamic_shifting = true, c.base_shift = 1e308; }, 4);
  refused(
      [](auto& c) { c.type = kDpm, c.use_dynamic_shifting = true, c.time_shift_type = "linear"; },
      4);
}

TEST(Scheduler, NamesAndTypes) {
  EXPECT_EQ(scheduler_type("euler", PredictionType::velocity), kEuler);
  EXPECT_EQ(scheduler_type("heun", PredictionType::velocity), kHeun);
  EXPECT_EQ(scheduler_type("dpmpp-2m", PredictionType::velocity), kDpm);
  EXPECT_EQ(scheduler_type("dpmpp-2m", PredictionType::epsilon), kDpm);
  EXPECT_EQ(scheduler_type("ddim", PredictionType::epsilon), kDdim);
  // By what they plan, since on Windows a function of a library has another address in a program.
  const auto evaluations = [](const char* type) {
    return find_planner(config_of(type))(make_schedule(config_of(type), 3, 64)).size();
  };
  EXPECT_EQ(evaluations(kHeun), 5U);  // two for each step but the last
  EXPECT_EQ(evaluations(kDdim), 3U);
  EXPECT_THROW(find_planner(config_of("euler")), UsageError);
  const SchedulerConfig sde = with_scheduler({}, "dpmpp-2m-sde");
  EXPECT_EQ(sde.type, kDpm);
  EXPECT_TRUE(has_update<NoisyUpdate>(find_planner(sde)(make_schedule(sde, 3, 64))));
  EXPECT_FALSE(with_scheduler(sde, "dpmpp-2m").sde);
  const auto refused = [](const char* name, PredictionType prediction_type, const char* says) {
    try {
      scheduler_type(name, prediction_type);
      ADD_FAILURE() << "accepted " << name;
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr(name), testing::HasSubstr(says)));
    }
  };
  refused("plms", PredictionType::velocity,
          "unknown scheduler \"plms\": use one of euler, heun, dpmpp-2m");
  refused("ddim", PredictionType::velocity,
          "does not fit a model that predicts velocity: use one of euler, heun");
  refused("euler", PredictionType::epsilon,
          "does not fit a model that predicts epsilon: use one of dpmpp-2m, dpmpp-2m-sde, unipc, "
          "ddim");
}

// The expected runs are those of diffusers' schedulers with the same model. `begin` > 0 is
// image-to-image.
TEST(Sampler, WholeRunsEqualDiffusers) {
  for (const auto& golden : golden_json("runs.json")) {
    const SchedulerConfig config = config_from(golden["config"]);
    const int steps = golden["steps"], begin = golden["begin"];
    SCOPED_TRACE(config.type + ", steps " + golden["steps"].dump() + ", begin " +
                 golden["begin"].dump());
    const Schedule schedule = make_schedule(config, steps, 64).last(steps - begin);
    const ToyRun run(config.type, schedule, golden["start"].get<std::vector<float>>(), {},
                     config.prediction_type);
    EXPECT_EQ(run.done, steps - begin);
    // The rounding of an epsilon is divided by the first alpha and multiplied by the second.
    const double grows = config.prediction_type == PredictionType::epsilon
                             ? 1e-6 * schedule.alphas[1] / schedule.alphas[0]
                             : 0.0;
    EXPECT_LE(relative_l2(run.x, golden["end"].get<std::vector<float>>()), std::max(1e-5, grows));
    std::vector<float> timesteps;
    for (const StepPoint& point : run.calls) timesteps.push_back(point.timestep);
    EXPECT_LE(largest_difference(timesteps, golden["timesteps"].get<std::vector<float>>()), 1e-3);
  }
}

TEST(Sampler, HeunsTwoEvaluationsShareTheStep) {
  const Schedule schedule = make_schedule(config_of(kHeun), 3, 64);
  const ToyRun run(kHeun, schedule, {0.5F});
  std::vector<int> steps;
  std::vector<float> sigmas;
  for (const StepPoint& point : run.calls) {
    steps.push_back(point.step);
    sigmas.push_back(point.sigma);
    EXPECT_EQ(point.steps, 3);
  }
  const auto& s = schedule.sigmas;
  EXPECT_EQ(steps, (std::vector{0, 0, 1, 1, 2}));
  EXPECT_EQ(sigmas, (std::vector{s[0], s[1], s[1], s[2], s[2]}));
}

TEST(Sampler, ReportsEachStepAndStopsWhenTold) {
  for (const char* type : {kEuler, kHeun, kDpm, kDdim}) {
    const Schedule schedule = make_schedule(config_of(type), 6, 64);
    std::vector<int> seen;
    std::vector<float> last;
    const ToyRun stopped(type, schedule, {1.0F, -1.0F}, [&](const StepPoint& point, auto x) {
      EXPECT_EQ(point.sigma, schedule.sigmas.at(seen.size()));
      EXPECT_EQ(point.timestep, schedule.timesteps.at(seen.size()));
      seen.push_back(point.step);
      last.assign(x.begin(), x.end());
      return point.step < 2;
    });
    EXPECT_EQ(stopped.done, 3) << type;
    EXPECT_EQ(seen, (std::vector{0, 1, 2})) << type;
    EXPECT_EQ(stopped.x, last) << type;
    const auto calls = stopped.calls.size();
    EXPECT_EQ(calls, type == std::string(kHeun) ? 6U : 3U);
  }
}

// A model that always predicts the same clean data: any sampler must end there.
TEST(Sampler, ConstantPredictionIsReached) {
  for (const char* type : {kEuler, kHeun, kDpm, kDdim}) {
    for (const int steps : {1, 2, 7, 20}) {
      std::vector<float> x = {3.0F, -2.0F, 0.25F};
      const SchedulerConfig config = config_of(type);
      const bool flow = config.prediction_type == PredictionType::velocity;
      // The prediction that stands for the clean data 0.75.
      const Model answer = [&](std::span<const float> at, const StepPoint& point,
                               std::span<float> prediction) {
        for (std::size_t i = 0; i < at.size(); ++i)
          prediction[i] = (at[i] - (flow ? 1.0F : point.alpha) * 0.75F) / point.sigma;
      };
      const Plan plan = find_planner(config)(make_schedule(config, steps, 64));
      EXPECT_EQ(run_plan(plan, config.prediction_type, answer, x), steps);
      for (const float value : x) EXPECT_NEAR(value, 0.75F, 1e-5F) << type << " " << steps;
    }
  }
}

// At pure noise, sigma 1, where Euler's schedule starts, lambda is infinite.
TEST(Sampler, DpmStartsFromPureNoise) {
  const ToyRun run(kDpm, make_schedule(config_of(kEuler), 8, 64), {0.3F, -1.2F, 2.0F});
  for (const float value : run.x) EXPECT_TRUE(std::isfinite(value));
}

TEST(Sampler, NoStepsLeaveTheSampleAlone) {
  for (const char* type : {kEuler, kHeun, kDpm, kDdim}) {
    const ToyRun run(type, make_schedule(config_of(type), 4, 64).last(0), {0.5F});
    EXPECT_EQ(run.done, 0);
    EXPECT_EQ(run.x, std::vector{0.5F});
    EXPECT_TRUE(run.calls.empty());
  }
}

TEST(Denoised, OfAModelsOutput) {
  const ToDenoised flow{.velocity = true, .sigma = 0.5F, .alpha = 0.25F};
  EXPECT_EQ(flow(2.0F, 1.0F), 1.5F);
  EXPECT_EQ(flow(-1.0F, 3.0F), -2.5F);
  const ToDenoised noise{.velocity = false, .sigma = 0.5F, .alpha = 0.25F};
  EXPECT_EQ(noise(2.0F, 1.0F), 6.0F);
  EXPECT_EQ(noise(-1.0F, 3.0F), -10.0F);
}

TEST(PredictionType, NamesAreThoseOfTheBundle) {
  for (const char* name : {"velocity", "epsilon"})
    EXPECT_STREQ(name_of(prediction_type_from(name)), name);
  EXPECT_THROW(prediction_type_from("sample"), UsageError);
}

}  // namespace
}  // namespace intaglio
