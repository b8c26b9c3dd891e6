// The samplers as plans, one function each, so that each reads like its paper.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <variant>

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

struct Level {
  double sigma, alpha;
};

Level end_of(const Schedule& schedule, int step) {
  const auto end = static_cast<std::size_t>(step) + 1;
  return {.sigma = schedule.sigmas[end], .alpha = schedule.alphas[end]};
}

// How half the log signal-to-noise ratio grows over a step.
double growth(const Schedule& schedule, int step) {
  const auto log_snr = [](double alpha, double sigma) { return std::log(alpha) - std::log(sigma); };
  const StepPoint begin = point_at(schedule, step);
  const auto [sigma, alpha] = end_of(schedule, step);
  return log_snr(alpha, sigma) - log_snr(begin.alpha, begin.sigma);
}

// What Dpmpp2mUpdate takes of the change of the clean data: D0 + D1 / 2 with
// D1 = (D0 - previous D0) h / previous h. The first step is of first order since it has no past,
// and the last one since the log signal-to-noise ratio is infinite where it ends.
float bend(const Schedule& schedule, int step) {
  if (step == 0 || step + 1 == schedule.steps()) return 0;
  return static_cast<float>(0.5 * growth(schedule, step) / growth(schedule, step - 1));
}

// B(h) phi_1(h) and so on of UniPC's corrector in a step of `h` that begins at `alpha`; `ratio` is
// that of the step before to it, with the other sign, or nothing in the first correction.
UnipcCorrector corrector(double decay, double alpha, double h, std::optional<double> ratio) {
  const double b = std::expm1(-h);
  const double phi_2 = b / -h - 1, phi_3 = phi_2 / -h - 0.5;
  // The weights of the two differences solve a system of two equations.
  double last = 0.5, older = 0;
  if (ratio) {
    const double first = phi_2 / b, second = 2 * phi_3 / b;
    older = (second - first) / (*ratio - 1);
    last = first - older;
    older /= *ratio;
  }
  return {.x = 0,
          .previous_x = static_cast<float>(decay),
          .denoised = static_cast<float>(-alpha * b * last),
          .previous_denoised = static_cast<float>(-alpha * b * (1 - last - older)),
          .older_denoised = static_cast<float>(-alpha * b * older)};
}

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

Plan plan_dpmpp_2m(const Schedule& schedule) {
  Plan plan;
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    const auto [sigma, alpha] = end_of(schedule, step);
    const double h = growth(schedule, step);
    plan.push_back({point,
                    Dpmpp2mUpdate{.decay = static_cast<float>(sigma / point.sigma),
                                  .gain = static_cast<float>(alpha * -std::expm1(-h)),
                                  .bend = bend(schedule, step)},
                    point});
  }
  return plan;
}

Plan plan_dpmpp_2m_sde(const Schedule& schedule) {
  Plan plan;
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    const auto [sigma, alpha] = end_of(schedule, step);
    const double h = growth(schedule, step), renewed = -std::expm1(-2 * h);
    plan.push_back(
        {point,
         NoisyUpdate{.mean = {.decay = static_cast<float>(sigma / point.sigma * std::exp(-h)),
                              .gain = static_cast<float>(alpha * renewed),
                              .bend = bend(schedule, step)},
                     .deviation = static_cast<float>(sigma * std::sqrt(renewed))},
         point});
  }
  return plan;
}

Plan plan_unipc(const Schedule& schedule) {
  Plan plan = plan_dpmpp_2m(schedule);
  for (int step = 0; step < schedule.steps(); ++step) {
    Evaluation& evaluation = plan[static_cast<std::size_t>(step)];
    UnipcUpdate update{.corrector = {}, .predictor = std::get<Dpmpp2mUpdate>(evaluation.update)};
    if (step > 0) {
      const StepPoint begin = point_at(schedule, step - 1);
      const double h = growth(schedule, step - 1);
      std::optional<double> ratio;
      if (step > 1) ratio = -growth(schedule, step - 2) / h;
      update.corrector = corrector(evaluation.point.sigma / static_cast<double>(begin.sigma),
                                   evaluation.point.alpha, h, ratio);
    }
    evaluation.update = update;
  }
  return plan;
}

Plan plan_lcm(const Schedule& schedule) {
  Plan plan;
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    const auto [sigma, alpha] = end_of(schedule, step);
    plan.push_back({point,
                    NoisyUpdate{.mean = {.decay = 0, .gain = static_cast<float>(alpha), .bend = 0},
                                .deviation = static_cast<float>(sigma)},
                    point});
  }
  return plan;
}

Plan plan_euler_ancestral(const Schedule& schedule) {
  Plan plan;
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    const auto [sigma, alpha] = end_of(schedule, step);
    const double down = sigma * sigma / point.sigma;  // where Euler's step ends
    const double ratio = down / point.sigma, scale = alpha / (1 - down);
    const double variance = sigma * sigma - down * down * scale * scale;
    plan.push_back(
        {point,
         NoisyUpdate{.mean = {.decay = static_cast<float>(scale * ratio),
                              .gain = static_cast<float>(scale * (1 - ratio)),
                              .bend = 0},
                     .deviation = static_cast<float>(std::sqrt(std::max(variance, 0.0)))},
         point});
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
