// Variance preserving schedules: alpha = sqrt(alphas_cumprod), sigma = sqrt(1 - alphas_cumprod).
// They are computed in float32 where torch does, since the smallest sigmas are the root of what
// rounding leaves of 1 - alpha.
#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <string>
#include <vector>

#include "intaglio/error.h"
#include "sampling/schedule.h"

namespace intaglio {
namespace {

// torch.linspace in float32. Each half is counted from its own end and rounded once, as in torch's
// kernels for AVX2 and AVX512.
std::vector<float> torch_linspace(double first, double last, int count) {
  const auto start = static_cast<float>(first), end = static_cast<float>(last);
  if (count == 1) return {start};
  const float step = (end - start) / static_cast<float>(count - 1);
  std::vector<float> values;
  for (int i = 0; i < count; ++i) {
    values.push_back(i < count / 2 ? std::fma(step, static_cast<float>(i), start)
                                   : std::fma(-step, static_cast<float>(count - 1 - i), end));
  }
  return values;
}

// betas_for_alpha_bar of diffusers: arXiv 2102.09672.
std::vector<float> cosine_betas(int count) {
  const auto alpha_bar = [](double t) {
    const double root = std::cos((t + 0.008) / 1.008 * std::numbers::pi / 2.0);
    return root * root;
  };
  std::vector<float> betas;
  for (int i = 0; i < count; ++i) {
    const double ratio =
        alpha_bar((i + 1) / static_cast<double>(count)) / alpha_bar(i / static_cast<double>(count));
    betas.push_back(static_cast<float>(std::min(1.0 - ratio, 0.999)));
  }
  return betas;
}

std::vector<float> make_betas(const SchedulerConfig& config) {
  const int count = config.num_train_timesteps;
  if (config.beta_schedule == "squaredcos_cap_v2") return cosine_betas(count);
  if (config.beta_schedule == "linear") {
    return torch_linspace(config.beta_start, config.beta_end, count);
  }
  if (config.beta_schedule != "scaled_linear") {
    throw UsageError("unknown beta_schedule \"" + config.beta_schedule +
                     "\": use linear, scaled_linear or squaredcos_cap_v2");
  }
  auto betas = torch_linspace(std::sqrt(config.beta_start), std::sqrt(config.beta_end), count);
  for (float& beta : betas) beta *= beta;
  return betas;
}

std::vector<float> cumulative_alphas(const SchedulerConfig& config) {
  std::vector<float> products;
  double product = 1.0;  // torch.cumprod multiplies float32 in double
  for (const float beta : make_betas(config)) {
    product *= 1.0F - beta;
    products.push_back(static_cast<float>(product));
    // Without signal nothing can be predicted, and without noise there is nothing to do.
    if (!(products.back() > 0.0F && products.back() < 1.0F)) {
      throw UsageError("the scheduler's betas must give noise levels between 0 and 1");
    }
  }
  return products;
}

// Returns the timesteps, largest first. `own` is the default spacing of the class. The range is cut
// into `parts`, which is one more than steps where timestep 0 is cut off.
std::vector<int> spaced_timesteps(const SchedulerConfig& config, const std::string& own, int steps,
                                  int parts) {
  const int train = config.num_train_timesteps;
  const std::string& spacing = config.timestep_spacing.empty() ? own : config.timestep_spacing;
  std::vector<int> timesteps;
  if (spacing == "linspace") {
    const auto values = linspace(0.0, train - 1.0, parts);
    for (int i = 0; i < steps; ++i) {
      const double value = values[static_cast<std::size_t>(parts - 1 - i)];
      timesteps.push_back(static_cast<int>(std::nearbyint(value)));
    }
  } else if (spacing == "leading") {
    for (int i = parts - 1; i >= parts - steps; --i) {
      timesteps.push_back(i * (train / parts) + config.steps_offset);
    }
  } else if (spacing == "trailing") {
    // Counts as np.arange does. Where rounding makes that give one timestep more, -1 (61 steps of
    // 1000), diffusers adds a step at the noise level of the last timestep; it is left out here.
    const double step = (train - train / static_cast<double>(steps)) - train;
    for (int i = 0; i < steps; ++i) {
      timesteps.push_back(static_cast<int>(std::nearbyint(train + i * step)) - 1);
    }
  } else {
    throw UsageError("unknown timestep_spacing \"" + spacing +
                     "\": use linspace, leading or trailing");
  }
  if (std::ranges::adjacent_find(timesteps, std::less_equal{}) != timesteps.end() ||
      timesteps.back() < 0 || timesteps.front() >= train) {
    throw UsageError("--steps " + std::to_string(steps) + ": the scheduler has no " +
                     std::to_string(steps) + " different timesteps: give fewer");
  }
  return timesteps;
}

}  // namespace

Schedule dpm_vp_schedule(const SchedulerConfig& config, int steps, int /*image_seq_len*/) {
  const auto products = cumulative_alphas(config);
  Schedule schedule;
  for (const int timestep : spaced_timesteps(config, "linspace", steps, steps + 1)) {
    const float product = products[static_cast<std::size_t>(timestep)];
    // diffusers keeps the ratio sigma / alpha and computes both from it.
    const float ratio = std::sqrt((1.0F - product) / product);
    const float alpha = 1.0F / std::sqrt(ratio * ratio + 1.0F);
    schedule.timesteps.push_back(static_cast<float>(timestep));
    schedule.alphas.push_back(alpha);
    schedule.sigmas.push_back(ratio * alpha);
  }
  schedule.alphas.push_back(1.0F);
  schedule.sigmas.push_back(0.0F);
  return schedule;
}

Schedule ddim_schedule(const SchedulerConfig& config, int steps, int /*image_seq_len*/) {
  const auto products = cumulative_alphas(config);
  Schedule schedule;
  for (const int timestep : spaced_timesteps(config, "leading", steps, steps)) {
    const int end = timestep - config.num_train_timesteps / steps;
    const float final_product = config.set_alpha_to_one ? 1.0F : products.front();
    const float ends = end >= 0 ? products[static_cast<std::size_t>(end)] : final_product;
    const float begins = products[static_cast<std::size_t>(timestep)];
    schedule.timesteps.push_back(static_cast<float>(timestep));
    schedule.alphas.push_back(std::sqrt(begins));
    schedule.sigmas.push_back(std::sqrt(1.0F - begins));
    schedule.end_alphas.push_back(std::sqrt(ends));
    schedule.end_sigmas.push_back(std::sqrt(1.0F - ends));
  }
  schedule.alphas.push_back(schedule.end_alphas.back());
  schedule.sigmas.push_back(schedule.end_sigmas.back());
  return schedule;
}

}  // namespace intaglio
