// Each sampler as a plan; it stands alone, so that it reads like its paper.
#include <cmath>
#include <cstddef>
#include <string>
#include <variant>
#include <vector>

#include "core/elementwise.h"
#include "intaglio/error.h"
#include "intaglio/sampling.h"
#include "sampling/plan.h"

namespace intaglio {
namespace {

StepPoint point_at(const Schedule& schedule, int step) {
  const auto i = static_cast<std::size_t>(step);
  return {step, schedule.steps(), schedule.sigmas[i], schedule.timesteps[i], schedule.alphas[i]};
}

// From where `step` begins to where the next one does.
float distance(const Schedule& schedule, int step) {
  const auto i = static_cast<std::size_t>(step);
  return schedule.sigmas[i + 1] - schedule.sigmas[i];
}

// Half the log signal-to-noise ratio.
double log_snr(double alpha, double sigma) { return std::log(alpha) - std::log(sigma); }

}  // namespace

bool predicts_velocity(const std::string& prediction_type) {
  if (prediction_type == "velocity") return true;  // noise - clean
  if (prediction_type == "epsilon") return false;
  throw UsageError("unknown prediction type \"" + prediction_type + "\": use velocity or epsilon");
}

void to_denoised(const std::string& prediction_type, std::span<const float> x,
                 const StepPoint& point, std::span<float> prediction) {
  const ToDenoised denoised{predicts_velocity(prediction_type), point.sigma, point.alpha};
  INTAGLIO_ELEMENTWISE
  for (std::size_t i = 0; i < x.size(); ++i) prediction[i] = denoised(x[i], prediction[i]);
}

Plan plan_euler(const Schedule& schedule) {
  Plan plan;
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    plan.push_back({point, EulerUpdate{point.sigma, distance(schedule, step)}, point});
  }
  return plan;
}

Plan plan_heun(const Schedule& schedule) {
  Plan plan;
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    const float dt = distance(schedule, step);
    if (step + 1 == schedule.steps()) {
      plan.push_back({point, EulerUpdate{point.sigma, dt}, point});
    } else {
      plan.push_back({point, HeunPredict{point.sigma, dt}, std::nullopt});
      StepPoint end = point_at(schedule, step + 1);
      end.step = step;
      plan.push_back({end, HeunCorrect{end.sigma, dt}, point});
    }
  }
  return plan;
}

// First order in the first step, which has no past, and in the last, where lambda is infinite.
Plan plan_dpmpp_2m(const Schedule& schedule) {
  Plan plan;
  double previous_h = 0.0;
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    const double sigma = schedule.sigmas[static_cast<std::size_t>(step) + 1];
    const double alpha = schedule.alphas[static_cast<std::size_t>(step) + 1];
    const double h = log_snr(alpha, sigma) - log_snr(point.alpha, point.sigma);
    Dpmpp2mUpdate update{static_cast<float>(sigma / point.sigma),
                         static_cast<float>(alpha * -std::expm1(-h))};
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
  const bool own_ends = !schedule.end_sigmas.empty();
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    const auto here = static_cast<std::size_t>(step);
    const float sigma = own_ends ? schedule.end_sigmas[here] : schedule.sigmas[here + 1];
    const float alpha = own_ends ? schedule.end_alphas[here] : schedule.alphas[here + 1];
    plan.push_back({point, DdimUpdate{point.sigma, point.alpha, sigma, alpha}, point});
  }
  return plan;
}

int run_plan(const Plan& plan, const Denoiser& denoise, std::span<float> x, const OnStep& on_step) {
  std::vector<float> denoised(x.size());
  std::vector<SamplerMemory> memory(x.size());
  int done = 0;
  for (const Evaluation& evaluation : plan) {
    denoise(x, evaluation.point, denoised);
    std::visit(
        [&](const auto& update) {
          for (std::size_t i = 0; i < x.size(); ++i) x[i] = update(x[i], denoised[i], memory[i]);
        },
        evaluation.update);
    if (!evaluation.ended) continue;
    ++done;
    if (on_step && !on_step(*evaluation.ended, x)) break;
  }
  return done;
}

int sample_euler(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                 const OnStep& on_step) {
  return run_plan(plan_euler(schedule), denoise, x, on_step);
}

int sample_heun(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                const OnStep& on_step) {
  return run_plan(plan_heun(schedule), denoise, x, on_step);
}

int sample_dpmpp_2m(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                    const OnStep& on_step) {
  return run_plan(plan_dpmpp_2m(schedule), denoise, x, on_step);
}

int sample_ddim(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                const OnStep& on_step) {
  return run_plan(plan_ddim(schedule), denoise, x, on_step);
}

}  // namespace intaglio
