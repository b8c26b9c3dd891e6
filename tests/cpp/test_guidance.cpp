#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/guided_step.h"
#include "intaglio/error.h"
#include "intaglio/guidance.h"

namespace intaglio {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<int> steps_inside(const Window& window, int steps) {
  std::vector<int> inside;
  for (int step = 0; step < steps; ++step) {
    if (window.contains(step, steps)) inside.push_back(step);
  }
  return inside;
}

TEST(Window, HoldsStartButNotEnd) {
  EXPECT_EQ(steps_inside({0.0, 0.3}, 10), (std::vector{0, 1, 2}));
  EXPECT_EQ(steps_inside({0.7, 1.0}, 10), (std::vector{7, 8, 9}));
  EXPECT_EQ(steps_inside({0.25, 0.75}, 4), (std::vector{1, 2}));
  EXPECT_EQ(steps_inside({0.05, 0.1}, 10), std::vector<int>{});
  EXPECT_EQ(steps_inside({}, 1), std::vector{0});
}

TEST(Window, ForgivesBoundsThatWereComputed) {
  EXPECT_EQ(steps_inside({0.0, 0.1 + 0.2}, 10), (std::vector{0, 1, 2}));
  EXPECT_EQ(steps_inside({0.1 + 0.2, 1.0 - 0.3 + 1e-16}, 10), (std::vector{3, 4, 5, 6}));
  EXPECT_EQ(steps_inside({0.3 - 1e-12, 0.6}, 10), (std::vector{3, 4, 5}));
}

// Step i starts exactly at i / N. A window that starts there includes the step, and a window that
// ends there does not, also for decimals as a person types them.
TEST(Window, BoundsAtAStepFallOnIt) {
  for (int steps = 1; steps <= 120; ++steps) {
    for (int step = 1; step < steps; ++step) {
      const double bound = std::stod(std::to_string(step) + ".0") / steps;
      for (const double nudge : {-1e-13, 0.0, 1e-13}) {
        EXPECT_TRUE((Window{bound + nudge, 1.0}.contains(step, steps)));
        EXPECT_FALSE((Window{bound + nudge, 1.0}.contains(step - 1, steps)));
        EXPECT_FALSE((Window{0.0, bound + nudge}.contains(step, steps)));
        EXPECT_TRUE((Window{0.0, bound + nudge}.contains(step - 1, steps)));
      }
    }
  }
}

TEST(Window, TwoThatMeetShareNoStepAndMissNone) {
  std::mt19937 engine(1);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  for (int round = 0; round < 2000; ++round) {
    const int steps = 1 + round % 97;
    const double cut =
        round % 3 == 0 ? (round % steps) / static_cast<double>(steps) : uniform(engine);
    for (int step = 0; step < steps; ++step) {
      ASSERT_NE((Window{0.0, cut}.contains(step, steps)), (Window{cut, 1.0}.contains(step, steps)))
          << step << " of " << steps << " at " << cut;
    }
  }
}

TEST(Ramp, GoesFromTheFirstStepToTheLast) {
  const Ramp ramp(2.0, 4.0);
  EXPECT_EQ(ramp.at(0, 5), 2.0);
  EXPECT_EQ(ramp.at(1, 5), 2.5);
  EXPECT_EQ(ramp.at(4, 5), 4.0);
  EXPECT_EQ(ramp.at(0, 1), 2.0);
  EXPECT_EQ(Ramp(1.0, 0.1).at(8, 9), 0.1);  // 1 + (0.1 - 1) is not 0.1
  for (int step = 0; step < 7; ++step) EXPECT_EQ(Ramp(0.1).at(step, 7), 0.1);
}

TEST(WeightsAt, DefaultsRunTheConditionalBranchOnly) {
  for (int step = 0; step < 4; ++step) {
    const StepWeights weights = weights_at({}, step, 4);
    EXPECT_FALSE(weights.unconditional());
    EXPECT_FALSE(weights.degraded());
  }
}

TEST(WeightsAt, EachGuidanceHasItsWindow) {
  Guidance guidance;
  guidance.cfg_scale = 4.0;
  guidance.cfg_window = {0.0, 0.5};
  guidance.dg_scale = Ramp(1.0, 4.0);
  guidance.dg_window = {0.25, 1.0};
  guidance.ma_keep = Ramp(1.0, 0.0);
  const std::vector<float> lambda = {3, 3, 0, 0}, w = {0, 2, 3, 4};
  for (int step = 0; step < 4; ++step) {
    const StepWeights weights = weights_at(guidance, step, 4);
    const auto i = static_cast<std::size_t>(step);
    EXPECT_EQ(weights.lambda, lambda[i]);
    EXPECT_EQ(weights.w, w[i]);
    EXPECT_EQ(weights.unconditional(), lambda[i] != 0);
    EXPECT_EQ(weights.degraded(), w[i] != 0);
    EXPECT_FLOAT_EQ(weights.ma_keep, 1.0F - static_cast<float>(step) / 3.0F);
  }
}

TEST(WeightsAt, ScaleBelowOneIsAppliedAsWritten) {
  Guidance guidance;
  guidance.cfg_scale = 0.5;
  EXPECT_EQ(weights_at(guidance, 0, 2).lambda, -0.5F);
  EXPECT_TRUE(weights_at(guidance, 0, 2).unconditional());
}

std::vector<int> degraded_runs(const Guidance& guidance, int steps) {
  std::vector<int> runs;
  const std::vector<StepWeights> weights = step_weights(guidance, steps);
  for (int step = 0; step < steps; ++step) {
    if (weights[static_cast<std::size_t>(step)].runs_degraded()) runs.push_back(step);
  }
  return runs;
}

TEST(StepWeights, ReuseRunsABranchEveryInterval) {
  Guidance guidance;
  guidance.dg_scale = 1.0;
  EXPECT_EQ(degraded_runs(guidance, 4), (std::vector{0, 1, 2, 3}));
  guidance.reuse_interval = 3.0;
  EXPECT_EQ(degraded_runs(guidance, 8), (std::vector{0, 3, 6}));
  guidance.reuse_interval = Ramp(4.0, 1.0);
  EXPECT_EQ(degraded_runs(guidance, 10), (std::vector{0, 3, 5, 7, 8, 9}));
  guidance.reuse_interval = 3.0;
  guidance.reuse_window = {0.2, 0.8};
  EXPECT_EQ(degraded_runs(guidance, 10), (std::vector{0, 1, 4, 7, 8, 9}));
  guidance.dg_window = {0.3, 1.0};
  EXPECT_EQ(degraded_runs(guidance, 10), (std::vector{3, 6, 8, 9}));
}

std::vector<int> skipped(const Guidance& guidance, int steps) {
  std::vector<int> found;
  const std::vector<StepWeights> weights = step_weights(guidance, steps);
  for (int step = 0; step < steps; ++step) {
    if (weights[static_cast<std::size_t>(step)].skip) found.push_back(step);
  }
  return found;
}

TEST(StepWeights, SkipRunsTheModelEveryInterval) {
  Guidance guidance;
  guidance.dg_scale = 1.0;
  EXPECT_EQ(skipped(guidance, 8), std::vector<int>{});
  guidance.skip_interval = 3.0;  // the third step is compared with the line through two
  EXPECT_EQ(skipped(guidance, 9), (std::vector{3, 4, 6, 7}));
  guidance.skip_interval = Ramp(3.0, 2.0);
  EXPECT_EQ(skipped(guidance, 9), (std::vector{3, 5, 7}));
  guidance.skip_interval = 2.0;
  guidance.skip_window = {0.5, 0.8};
  EXPECT_EQ(skipped(guidance, 10), (std::vector{5, 7}));
  guidance.skip_window = {};
  guidance.dg_window = {0.4, 1.0};  // other branches from step 4 on
  EXPECT_EQ(skipped(guidance, 10), (std::vector{3, 7, 9}));
  guidance.dg_window = {};
  guidance.skip_steps = {1, 3, 4, 8, 30};  // the first three steps have no line
  EXPECT_EQ(skipped(guidance, 10), (std::vector{3, 4, 8}));
}

TEST(StepWeights, SkippedStepsRunNoBranchAndAgeDifferences) {
  Guidance guidance;
  guidance.dg_scale = 1.0;
  guidance.skip_interval = 2.0;
  guidance.reuse_interval = 2.0;
  EXPECT_EQ(degraded_runs(guidance, 8), (std::vector{0, 2, 4, 6}));
  guidance.reuse_interval = 4.0;
  EXPECT_EQ(degraded_runs(guidance, 9), (std::vector{0, 4, 8}));
  for (const StepWeights& weights : step_weights(guidance, 9))
    EXPECT_FALSE(weights.skip && weights.reuse_degraded) << "it runs D_m, if it runs after all";
}

void expect_refused(const Guidance& guidance, const std::string& named) {
  try {
    check_guidance(guidance);
    ADD_FAILURE() << "accepted a bad " << named;
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(named));
  }
}

TEST(Validate, RefusesBadWindows) {
  const Window bad[] = {{0.5, 0.5}, {0.5, 0.2}, {-0.1, 0.5}, {0.0, 1.1}, {kNan, 1.0}, {0.0, kNan}};
  for (const Window& window : bad) {
    Guidance cfg, dg;
    cfg.cfg_window = window;
    dg.dg_window = window;
    expect_refused(cfg, "cfg-window");
    expect_refused(dg, "dg-window");
  }
  EXPECT_NO_THROW(check_guidance({}));
}

TEST(Validate, RefusesIntervalsThatGrowOrAreNone) {
  for (const Ramp& bad :
       {Ramp(0.5), Ramp(1.0, 2.0), Ramp(2.0, 0.0), Ramp(kNan), Ramp(kInfinity), Ramp(2.0, kNan)}) {
    Guidance guidance;
    guidance.reuse_interval = bad;
    expect_refused(guidance, "reuse-interval");
    Guidance skipping;
    skipping.skip_interval = bad;
    expect_refused(skipping, "skip-interval");
  }
  for (const double bad : {0.0, -1.0, kNan, kInfinity}) {
    Guidance skipping;
    skipping.skip_tolerance = bad;
    expect_refused(skipping, "skip-tolerance");
  }
  Guidance guidance;
  guidance.reuse_interval = Ramp(3.0, 1.5);
  EXPECT_NO_THROW(check_guidance(guidance));
  guidance.reuse_window = {0.5, 0.5};
  expect_refused(guidance, "reuse-window");
}

TEST(Validate, RefusesBadNumbers) {
  for (const Ramp& bad : {Ramp(-1.0), Ramp(-0.5, 2.0), Ramp(2.0, -0.5)}) {
    Guidance guidance;
    guidance.cfg_scale = bad;
    expect_refused(guidance, "cfg-scale");
  }
  for (const double bad : {kNan, kInfinity, -kInfinity, 1e39}) {
    Guidance cfg, dg, keep;
    cfg.cfg_scale = Ramp(1.0, bad);
    dg.dg_scale = bad;
    keep.ma_keep = bad;
    expect_refused(cfg, "cfg-scale");
    expect_refused(dg, "dg-scale");
    expect_refused(keep, "ma-keep");
  }
  for (const Ramp& bad : {Ramp(-0.1), Ramp(1.0, -0.5), Ramp(-1.0, 0.0)}) {
    Guidance guidance;
    guidance.ma_keep = bad;
    expect_refused(guidance, "ma-keep");
  }
}

class CombineTest : public testing::Test {
 protected:
  CombineTest() {
    std::mt19937 engine(7);
    std::normal_distribution<float> normal;
    for (auto* values : {&c_, &u_, &m_}) {
      values->resize(1003);  // not a multiple of a vector register
      for (float& value : *values) value = normal(engine);
    }
  }
  // Every intermediate is rounded to float32, from left to right.
  std::vector<float> expected(const StepWeights& weights) const {
    std::vector<float> out(c_.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      volatile float sum = c_[i];
      if (weights.unconditional()) {
        const volatile float difference = c_[i] - u_[i];
        const volatile float term = weights.lambda * difference;
        sum = sum + term;
      }
      if (weights.degraded()) {
        const volatile float difference = c_[i] - m_[i];
        const volatile float term = weights.w * difference;
        sum = sum + term;
      }
      out[i] = sum;
    }
    return out;
  }
  std::vector<float> c_, u_, m_;
};

// Runs the loop's arithmetic. With x = 0 and sigma = -1 the clean data are the combination itself.
std::vector<float> combined(const std::vector<float>& c, const std::vector<float>& u,
                            const std::vector<float>& m, const StepWeights& weights) {
  const auto tensor = [&](const std::vector<float>& values) {
    Tensor copy({static_cast<std::int64_t>(values.size())}, DType::float32);
    std::ranges::copy(values, copy.floats().begin());
    return copy;
  };
  const std::vector<float> zeros(c.size());
  GuidedStep step;
  step.combine = {.lambda = weights.lambda,
                  .w = weights.w,
                  .has_unconditional = weights.unconditional(),
                  .has_degraded = weights.degraded(),
                  .unconditional_delta = {},
                  .degraded_delta = {}};
  step.to_denoised = {.velocity = true, .sigma = -1, .alpha = 1};
  step.conditional = tensor(c);
  if (weights.unconditional()) step.unconditional = tensor(u);
  if (weights.degraded()) step.degraded = tensor(m);
  step.x = tensor(zeros);
  step.denoised = tensor(zeros);
  step.previous_denoised = tensor(zeros);
  step.previous_x = tensor(zeros);
  run_on_host(step);
  return {step.denoised.floats().begin(), step.denoised.floats().end()};
}

TEST_F(CombineTest, EveryCombinationOfBranches) {
  for (const auto& [lambda, w] :
       {std::pair{0.0F, 0.0F}, {2.5F, 0.0F}, {0.0F, 0.7F}, {1.3F, -0.4F}}) {
    StepWeights weights;
    weights.lambda = lambda;
    weights.w = w;
    EXPECT_EQ(combined(c_, u_, m_, weights), expected(weights));
  }
}

}  // namespace
}  // namespace intaglio
