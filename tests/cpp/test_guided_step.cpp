#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include "backend/host_stream.h"
#include "core/guided_step.h"

namespace intaglio {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::int64_t kSize = 39;  // not a multiple of any vector's width

Tensor drawn(unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  Tensor tensor({kSize}, DType::float32);
  for (float& value : tensor.floats()) value = normal(engine);
  return tensor;
}

Tensor filled(float value) {
  Tensor tensor({kSize}, DType::float32);
  for (float& element : tensor.floats()) element = value;
  return tensor;
}

GuidedStep random_step(const Update& update) {
  GuidedStep step;
  step.combine = {.lambda = 2.5F,
                  .w = 1.25F,
                  .has_unconditional = true,
                  .has_degraded = true,
                  .unconditional_delta = {},
                  .degraded_delta = {}};
  step.to_denoised = {.velocity = true, .sigma = 0.75F, .alpha = 0.25F};
  step.update = update;
  step.conditional = drawn(1);
  step.unconditional = drawn(2);
  step.degraded = drawn(3);
  step.x = drawn(4);
  step.denoised = filled(kNan);
  step.previous_denoised = drawn(5);
  step.previous_x = drawn(6);
  return step;
}

const std::vector<Update> kUpdates{
    EulerUpdate{0.75F, -0.125F}, HeunPredict{0.75F, -0.125F}, HeunCorrect{0.75F, 0.5F, -0.25F},
    Dpmpp2mUpdate{0.8F, 0.3F, 0.4F}, DdimUpdate{0.6F, 0.8F, 0.28F, 0.96F}};

// The formulas again, in double precision and as the papers write them.
struct Expected {
  double x, denoised, previous_denoised, previous_x;
};

// |D_c| / |D_c + lambda (D_c - D_0)| of a token.
double factor(const GuidedStep& step, std::size_t token) {
  double conditional = 0, guided = 0;
  for (std::size_t i = 0; i < step.combine.token_size; ++i) {
    const std::size_t at = token * step.combine.token_size + i;
    const double c = step.conditional.floats()[at], u = step.unconditional.floats()[at];
    conditional += c * c;
    guided += std::pow(c + step.combine.lambda * (c - u), 2);
  }
  return std::sqrt(conditional / guided);
}

Expected expected(const GuidedStep& step, std::size_t i) {
  const auto at = [i](const Tensor& tensor) { return static_cast<double>(tensor.floats()[i]); };
  double prediction = at(step.conditional);
  if (step.combine.has_unconditional)
    prediction += step.combine.lambda * (at(step.conditional) - at(step.unconditional));
  if (step.combine.token_size > 0 && step.combine.has_unconditional)
    prediction *= factor(step, i / step.combine.token_size);
  if (step.combine.has_degraded)
    prediction += step.combine.w * (at(step.conditional) - at(step.degraded));
  const double x = at(step.x), sigma = step.to_denoised.sigma, alpha = step.to_denoised.alpha;
  const double clean = (x - sigma * prediction) / (step.to_denoised.velocity ? 1.0 : alpha);
  Expected result{0, clean, at(step.previous_denoised), at(step.previous_x)};
  if (const auto* euler = std::get_if<EulerUpdate>(&step.update)) {
    result.x = x + (x - clean) * euler->dt / euler->sigma;
  } else if (const auto* predict = std::get_if<HeunPredict>(&step.update)) {
    result.previous_denoised = clean;
    result.previous_x = x;
    result.x = x + (x - clean) / predict->sigma * predict->dt;
  } else if (const auto* correct = std::get_if<HeunCorrect>(&step.update)) {
    const double begin = at(step.previous_x);
    const double begin_slope = (begin - at(step.previous_denoised)) / correct->begin_sigma;
    const double slope = (x - clean) / correct->sigma;
    result.x = begin + correct->dt * (begin_slope + slope) / 2;
  } else if (const auto* dpm = std::get_if<Dpmpp2mUpdate>(&step.update)) {
    result.x =
        dpm->decay * x + dpm->gain * (clean + dpm->bend * (clean - at(step.previous_denoised)));
    result.previous_denoised = clean;
  } else {
    const auto& ddim = std::get<DdimUpdate>(step.update);
    result.x = ddim.next_alpha * clean + ddim.next_sigma * (x - ddim.alpha * clean) / ddim.sigma;
  }
  return result;
}

void expect_matches(const GuidedStep& step) {
  std::vector<Expected> wanted;
  for (std::size_t i = 0; i < kSize; ++i) wanted.push_back(expected(step, i));
  HostStream stream;
  stream.step(step);
  for (std::size_t i = 0; i < kSize; ++i) {
    const auto close = [](const Tensor& tensor, std::size_t at, double value) {
      EXPECT_NEAR(tensor.floats()[at], value, 1e-5 * (1 + std::abs(value)));
    };
    close(step.x, i, wanted[i].x);
    close(step.denoised, i, wanted[i].denoised);
    close(step.previous_denoised, i, wanted[i].previous_denoised);
    close(step.previous_x, i, wanted[i].previous_x);
  }
}

TEST(GuidedStep, IsThePapersFormulas) {
  for (const Update& update : kUpdates) {
    for (const bool velocity : {true, false}) {
      SCOPED_TRACE("update " + std::to_string(update.index()) + ", velocity " +
                   std::to_string(velocity));
      GuidedStep step = random_step(update);
      step.to_denoised.velocity = velocity;
      expect_matches(step);
    }
  }
}

// As Qwen-Image's pipeline scales CFG's result; DG's term is added as it is.
TEST(GuidedStep, ScalesTokensToTheNormOfTheConditional) {
  for (const bool keeps : {true, false}) {
    for (const bool unconditional : {true, false}) {
      GuidedStep step = random_step(kUpdates.front());
      step.combine.token_size = kSize / 3;
      step.combine.has_unconditional = unconditional;
      if (keeps) {
        step.newer_guided = drawn(7);
        step.older_guided = drawn(8);
        step.distance = Tensor({1}, DType::float32);
      }
      expect_matches(step);
    }
  }
}

// A branch that did not run has values of an earlier step, or no memory.
TEST(GuidedStep, ReadsNoBranchThatDidNotRun) {
  for (const bool unconditional : {true, false}) {
    for (const bool degraded : {true, false}) {
      SCOPED_TRACE(std::to_string(unconditional) + std::to_string(degraded));
      GuidedStep step = random_step(kUpdates.front());
      step.combine.has_unconditional = unconditional;
      step.combine.has_degraded = degraded;
      if (!unconditional) step.unconditional = filled(kNan);
      if (!degraded) step.degraded = Tensor();
      expect_matches(step);
    }
  }
}

// A reused difference has the effect of the prediction from which it would have been computed.
TEST(GuidedStep, ReusesDifferencesOnALine) {
  for (const float slope : {0.0F, 0.5F, 2.0F}) {
    GuidedStep step = random_step(kUpdates.front()), run = random_step(kUpdates.front());
    step.combine.unconditional_delta = step.combine.degraded_delta = {true, slope};
    step.newer_unconditional = drawn(7);
    step.older_unconditional = drawn(8);
    step.newer_degraded = drawn(9);
    step.older_degraded = drawn(10);
    step.unconditional = Tensor();  // it did not run
    step.degraded = Tensor();
    for (std::size_t i = 0; i < kSize; ++i) {
      const auto line = [&](const Tensor& newer, const Tensor& older) {
        return (1 + slope) * newer.floats()[i] - slope * older.floats()[i];
      };
      const float c = run.conditional.floats()[i];
      run.unconditional.floats()[i] = c - line(step.newer_unconditional, step.older_unconditional);
      run.degraded.floats()[i] = c - line(step.newer_degraded, step.older_degraded);
    }
    HostStream stream;
    stream.step(step);
    stream.step(run);
    for (std::size_t i = 0; i < kSize; ++i) {
      EXPECT_NEAR(step.x.floats()[i], run.x.floats()[i], 1e-5);
      EXPECT_EQ(step.newer_degraded.floats()[i],
                drawn(9).floats()[i]);  // unchanged, since the branch did not run
    }
  }
}

TEST(GuidedStep, KeepsTheLastTwoDifferences) {
  GuidedStep plain = random_step(kUpdates.front()), step = random_step(kUpdates.front());
  step.newer_degraded = drawn(9);
  step.older_degraded = drawn(10);
  HostStream stream;
  stream.step(plain);
  stream.step(step);
  for (std::size_t i = 0; i < kSize; ++i) {
    EXPECT_EQ(step.x.floats()[i], plain.x.floats()[i]);  // bit for bit
    EXPECT_EQ(step.newer_degraded.floats()[i],
              step.conditional.floats()[i] - step.degraded.floats()[i]);
    EXPECT_EQ(step.older_degraded.floats()[i], drawn(9).floats()[i]);
  }
}

// A skipped step has the effect of the prediction on the line.
TEST(GuidedStep, FollowsTheLineWhereItIsSkipped) {
  for (const Update& update : kUpdates) {
    GuidedStep step = random_step(update), run = random_step(update);
    step.line = {.skipped = true, .compared = true, .same_time = false, .slope = 1.5F};
    step.newer_guided = drawn(7);
    step.older_guided = drawn(8);
    step.conditional = step.unconditional = step.degraded = Tensor();  // nothing ran
    run.combine.has_unconditional = run.combine.has_degraded = false;
    for (std::size_t i = 0; i < kSize; ++i)
      run.conditional.floats()[i] = 2.5F * drawn(7).floats()[i] - 1.5F * drawn(8).floats()[i];
    HostStream stream;
    stream.step(step);
    stream.step(run);
    for (std::size_t i = 0; i < kSize; ++i) {
      EXPECT_NEAR(step.x.floats()[i], run.x.floats()[i], 1e-5);
      EXPECT_NEAR(step.denoised.floats()[i], run.denoised.floats()[i], 1e-5);
      EXPECT_EQ(step.newer_guided.floats()[i], drawn(7).floats()[i]);
    }
  }
}

TEST(GuidedStep, KeepsTheLastTwoPredictionsAndTheirDistanceFromTheLine) {
  for (const bool same_time : {false, true}) {
    GuidedStep plain = random_step(kUpdates.front()), step = random_step(kUpdates.front());
    step.line = {.skipped = false, .compared = true, .same_time = same_time, .slope = 2};
    step.newer_guided = drawn(7);
    step.older_guided = drawn(8);
    step.distance = Tensor({1}, DType::float32);
    HostStream stream;
    stream.step(plain);
    stream.step(step);
    double missed = 0, whole = 0;
    for (std::size_t i = 0; i < kSize; ++i) {
      const double c = plain.conditional.floats()[i], u = plain.unconditional.floats()[i],
                   m = plain.degraded.floats()[i];
      const double guided = c + 2.5 * (c - u) + 1.25 * (c - m);
      const double newer = drawn(7).floats()[i], older = drawn(8).floats()[i];
      missed += std::pow(guided - (3 * newer - 2 * older), 2);
      whole += guided * guided;
      EXPECT_EQ(step.x.floats()[i], plain.x.floats()[i]);  // bit for bit
      EXPECT_NEAR(step.newer_guided.floats()[i], guided, 1e-5);
      EXPECT_EQ(step.older_guided.floats()[i], static_cast<float>(same_time ? older : newer));
    }
    EXPECT_NEAR(step.distance.floats()[0], std::sqrt(missed / whole), 1e-5);
  }
}

// Each image has its own distance, so that a good one does not hide a bad one.
TEST(GuidedStep, MeasuresEachImage) {
  GuidedStep step = random_step(kUpdates.front());
  const auto in_two = [](Tensor& tensor) {
    Tensor longer({2, kSize}, DType::float32);
    std::ranges::copy(tensor.floats(), longer.rows(0, 1).floats().begin());
    std::ranges::copy(tensor.floats(), longer.rows(1, 2).floats().begin());
    tensor = longer;
  };
  step.newer_guided = drawn(7);
  step.older_guided = drawn(7);
  for (Tensor* tensor :
       {&step.conditional, &step.unconditional, &step.degraded, &step.x, &step.denoised,
        &step.previous_denoised, &step.previous_x, &step.newer_guided, &step.older_guided})
    in_two(*tensor);
  step.combine.has_unconditional = step.combine.has_degraded = false;
  std::ranges::copy(drawn(1).floats(), step.newer_guided.rows(1, 2).floats().begin());
  std::ranges::copy(drawn(1).floats(), step.older_guided.rows(1, 2).floats().begin());
  step.line.compared = true;
  step.distance = Tensor({2}, DType::float32);
  HostStream stream;
  stream.step(step);
  EXPECT_GT(step.distance.floats()[0], 0.5F);
  EXPECT_EQ(step.distance.floats()[1], 0.0F);
}

TEST(HostStream, CopiesFillsAndWritesKeep) {
  HostStream stream;
  Tensor rows = stream.allocate({2, 3}, DType::float32);
  EXPECT_EQ(std::vector<float>(rows.floats().begin(), rows.floats().end()),
            std::vector<float>(6, 0.0F));
  Tensor token_mask({3}, DType::float32);
  token_mask.floats()[0] = 0.0F;
  token_mask.floats()[1] = 0.5F;
  token_mask.floats()[2] = 1.0F;
  stream.fill(rows, 7.0F);
  stream.fill_keep(rows.rows(1, 2), token_mask, 0.25F);
  Tensor copied({2, 3}, DType::float32);
  stream.copy(rows, copied);
  EXPECT_EQ(std::vector<float>(copied.floats().begin(), copied.floats().end()),
            (std::vector<float>{7.0F, 7.0F, 7.0F, 1.0F, 0.625F, 0.25F}));
}

// Whatever the step computes there, also where it is not finite.
TEST(GuidedStep, PutsThePictureBackOutsideTheMask) {
  for (const Update& update : kUpdates) {
    GuidedStep step = random_step(update), whole = random_step(update);
    step.kept = {.drawn = filled(0),
                 .clean = drawn(7),
                 .noise = drawn(8),
                 .level = {.alpha = 0.375F, .sigma = 0.625F}};
    step.kept.drawn.floats()[3] = step.kept.drawn.floats()[20] = 1;
    step.conditional.floats()[5] = kNan;
    run_on_host(step);
    run_on_host(whole);
    for (std::size_t i = 0; i < kSize; ++i) {
      const bool inside = i == 3 || i == 20;
      const float clean = step.kept.clean.floats()[i], noise = step.kept.noise.floats()[i];
      EXPECT_EQ(step.x.floats()[i], inside ? whole.x.floats()[i] : 0.375F * clean + 0.625F * noise);
      EXPECT_EQ(step.denoised.floats()[i], inside ? whole.denoised.floats()[i] : clean);
      if (i == 5) continue;
      EXPECT_EQ(step.previous_denoised.floats()[i], whole.previous_denoised.floats()[i]);
      EXPECT_EQ(step.previous_x.floats()[i], whole.previous_x.floats()[i]);
    }
  }
}

}  // namespace
}  // namespace intaglio
