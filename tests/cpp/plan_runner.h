// Runs a sampler's plan through the arithmetic of the loop, with a model in place of the
// transformer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>

#include "backend/host_stream.h"
#include "core/guided_step.h"
#include "intaglio/sampling.h"
#include "sampling/plan.h"

namespace intaglio {

// Writes what the model predicts at `point` into `prediction`.
using Model = std::function<void(std::span<const float> x, const StepPoint& point,
                                 std::span<float> prediction)>;
// Sees x after each step. Returning false stops the run.
using OnStep = std::function<bool(const StepPoint& point, std::span<const float> x)>;

// Moves x in place. Returns the number of steps done, fewer than planned when stopped.
inline int run_plan(const Plan& plan, PredictionType type, const Model& model, std::span<float> x,
                    const OnStep& on_step = {}) {
  HostStream stream;
  GuidedStep step;
  for (Tensor* tensor :
       {&step.conditional, &step.x, &step.denoised, &step.previous_denoised, &step.previous_x})
    *tensor = stream.allocate({static_cast<std::int64_t>(x.size())}, DType::float32);
  std::ranges::copy(x, step.x.floats().begin());
  int done = 0;
  for (const Evaluation& evaluation : plan) {
    const StepPoint& point = evaluation.point;
    model(step.x.floats(), point, step.conditional.floats());
    step.to_denoised = {
        .velocity = type == PredictionType::velocity, .sigma = point.sigma, .alpha = point.alpha};
    step.update = evaluation.update;
    stream.step(step);
    std::ranges::copy(step.x.floats(), x.begin());
    if (!evaluation.ended) continue;
    ++done;
    if (on_step && !on_step(*evaluation.ended, x)) break;
  }
  return done;
}

}  // namespace intaglio
