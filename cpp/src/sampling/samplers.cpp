// The samplers as plans, one function each, so that each reads like its paper.
#include <cmath>
#include <cstddef>
#include <optional>

#include "sampling/plan.h"

namespace intaglio {
namespace {

StepPoint point_at(const Schedule& schedule, int step) {
  const auto i = static_cast<std::size_t>(step);
  return {.step = step,
          .steps = schedule.steps(),
          .sigma = schedule.sigmas[i],
          .timestep = schedule.timesteps[i],
          .alpha = schedule.alphas[i]};
}

// The change of sigma over a step.
float distance(const Schedule& schedule, int step) {
  const auto i = static_cast<std::size_t>(step);
  return schedule.sigmas[i + 1] - schedule.sigmas[i];
}

// Half the log signal-to-noise ratio.
double log_snr(double alpha, double sigma) { return std::log(alpha) - std::log(sigma); }

}  // namespace

Plan plan_euler(const Schedule& schedule) {
  Plan plan;
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    plan.push_back(
        {point, EulerUpdate{.sigma = point.sigma, .dt = distance(schedule, step)}, point});
  }
  return plan;
}

Plan plan_heun(const Schedule& schedule) {
  Plan plan;
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    const float dt = distance(schedule, step);
    if (step + 1 == schedule.steps()) {
      plan.push_back({point, EulerUpdate{.sigma = point.sigma, .dt = dt}, point});
    } else {
      plan.push_back({point, HeunPredict{.sigma = point.sigma, .dt = dt}, std::nullopt});
      StepPoint end = point_at(schedule, step + 1);
      end.step = step;
      plan.push_back(
          {end, HeunCorrect{.begin_sigma = point.sigma, .sigma = end.sigma, .dt = dt}, point});
    }
  }
  return plan;
}

// The first step is of first order since it has no past, and the last one since lambda is infinite
// where it ends.
Plan plan_dpmpp_2m(const Schedule& schedule) {
  Plan plan;
  double previous_h = 0.0;
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    const double sigma = schedule.sigmas[static_cast<std::size_t>(step) + 1];
    const double alpha = schedule.alphas[static_cast<std::size_t>(step) + 1];
    const double h = log_snr(alpha, sigma) - log_snr(point.alpha, point.sigma);
    Dpmpp2mUpdate update{.decay = static_cast<float>(sigma / point.sigma),
                         .gain = static_cast<float>(alpha * -std::expm1(-h)),
                         .bend = 0};
    // gain * (D0 + D1 / 2) with D1 = (D0 - previous D0) h / previous h.
    if (step > 0 && step + 1 < schedule.steps())
      update.bend = static_cast<float>(0.5 * h / previous_h);
    plan.push_back({point, update, point});
    previous_h = h;
  }
  return plan;
}

Plan plan_ddim(const Schedule& schedule) {
  Plan plan;
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    const auto here = static_cast<std::size_t>(step);
    plan.push_back({point,
                    DdimUpdate{.sigma = point.sigma,
                               .alpha = point.alpha,
                               .next_sigma = schedule.end_sigmas[here],
                               .next_alpha = schedule.end_alphas[here]},
                    point});
  }
  return plan;
}

}  // namespace intaglio
