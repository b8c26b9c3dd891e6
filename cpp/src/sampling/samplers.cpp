// Plain loops over x; each sampler stands alone, so that it reads like its paper.
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "intaglio/error.h"
#include "intaglio/sampling.h"

namespace intaglio {
namespace {

StepPoint point_at(const Schedule& schedule, int step) {
  const auto i = static_cast<std::size_t>(step);
  return {step, schedule.steps(), schedule.sigmas[i], schedule.timesteps[i], schedule.alphas[i]};
}

bool goes_on(const OnStep& on_step, const StepPoint& point, std::span<const float> x) {
  return !on_step || on_step(point, x);
}

// Half the log signal-to-noise ratio.
double log_snr(double alpha, double sigma) { return std::log(alpha) - std::log(sigma); }

}  // namespace

void to_denoised(const std::string& prediction_type, std::span<const float> x,
                 const StepPoint& point, std::span<float> prediction) {
  const float sigma = point.sigma, alpha = point.alpha;
  if (prediction_type == "velocity") {  // noise - clean
    for (std::size_t i = 0; i < x.size(); ++i) prediction[i] = x[i] - sigma * prediction[i];
  } else if (prediction_type == "epsilon") {
    for (std::size_t i = 0; i < x.size(); ++i) {
      prediction[i] = (x[i] - sigma * prediction[i]) / alpha;
    }
  } else {
    throw UsageError("unknown prediction type \"" + prediction_type +
                     "\": use velocity or epsilon");
  }
}

int sample_euler(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                 const OnStep& on_step) {
  std::vector<float> denoised(x.size());
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    denoise(x, point, denoised);
    const float sigma = point.sigma;
    const float dt = schedule.sigmas[static_cast<std::size_t>(step) + 1] - sigma;
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += dt * ((x[i] - denoised[i]) / sigma);
    if (!goes_on(on_step, point, x)) return step + 1;
  }
  return schedule.steps();
}

int sample_heun(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                const OnStep& on_step) {
  std::vector<float> denoised(x.size()), slope(x.size()), ahead(x.size());
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    denoise(x, point, denoised);
    const float sigma = point.sigma;
    const float next = schedule.sigmas[static_cast<std::size_t>(step) + 1];
    const float dt = next - sigma;
    for (std::size_t i = 0; i < x.size(); ++i) slope[i] = (x[i] - denoised[i]) / sigma;
    if (step + 1 == schedule.steps()) {
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += dt * slope[i];
    } else {
      for (std::size_t i = 0; i < x.size(); ++i) ahead[i] = x[i] + dt * slope[i];
      StepPoint second = point_at(schedule, step + 1);
      second.step = step;
      denoise(ahead, second, denoised);
      for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] += dt * (0.5F * (slope[i] + (ahead[i] - denoised[i]) / next));
      }
    }
    if (!goes_on(on_step, point, x)) return step + 1;
  }
  return schedule.steps();
}

// First order in the first step, which has no past, and in the last, where lambda is infinite.
int sample_dpmpp_2m(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                    const OnStep& on_step) {
  std::vector<float> denoised(x.size()), previous(x.size());
  double previous_h = 0.0;
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    denoise(x, point, denoised);
    const double sigma = schedule.sigmas[static_cast<std::size_t>(step) + 1];
    const double alpha = schedule.alphas[static_cast<std::size_t>(step) + 1];
    const double h = log_snr(alpha, sigma) - log_snr(point.alpha, point.sigma);
    const bool second_order = step > 0 && step + 1 < schedule.steps();
    const auto decay = static_cast<float>(sigma / point.sigma);
    const auto gain = static_cast<float>(alpha * -std::expm1(-h));
    // gain * (D0 + D1 / 2) with D1 = (D0 - previous D0) h / previous h.
    const auto bend = second_order ? static_cast<float>(0.5 * h / previous_h) : 0.0F;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float change = second_order ? bend * (denoised[i] - previous[i]) : 0.0F;
      x[i] = decay * x[i] + gain * (denoised[i] + change);
    }
    std::swap(denoised, previous);
    previous_h = h;
    if (!goes_on(on_step, point, x)) return step + 1;
  }
  return schedule.steps();
}

int sample_ddim(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                const OnStep& on_step) {
  std::vector<float> denoised(x.size());
  const bool own_ends = !schedule.end_sigmas.empty();
  for (int step = 0; step < schedule.steps(); ++step) {
    const StepPoint point = point_at(schedule, step);
    denoise(x, point, denoised);
    const auto here = static_cast<std::size_t>(step);
    const float sigma = own_ends ? schedule.end_sigmas[here] : schedule.sigmas[here + 1];
    const float alpha = own_ends ? schedule.end_alphas[here] : schedule.alphas[here + 1];
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float epsilon = (x[i] - point.alpha * denoised[i]) / point.sigma;
      x[i] = alpha * denoised[i] + sigma * epsilon;
    }
    if (!goes_on(on_step, point, x)) return step + 1;
  }
  return schedule.steps();
}

}  // namespace intaglio
