#include "sampling/schedule.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "intaglio/error.h"

namespace intaglio {
namespace {

// np.linspace: the last value is `stop` itself; one value is `start`.
std::vector<double> linspace(double start, double stop, int count) {
  std::vector<double> values(static_cast<std::size_t>(count));
  const double step = count > 1 ? (stop - start) / (count - 1) : 0.0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<double>(i) * step + start;
  }
  if (count > 1) values.back() = stop;
  return values;
}

template <typename T>
T static_shift(T shift, T sigma) {
  return shift * sigma / (T{1} + (shift - T{1}) * sigma);
}

// Linear in the number of latent patches: calculate_shift of diffusers' pipelines.
double dynamic_mu(const SchedulerConfig& config, int image_seq_len) {
  const double slope = (config.max_shift - config.base_shift) /
                       (config.max_image_seq_len - config.base_image_seq_len);
  return image_seq_len * slope + (config.base_shift - slope * config.base_image_seq_len);
}

double dynamic_shift(const SchedulerConfig& config, double mu, double sigma) {
  const double weight = config.time_shift_type == "linear" ? mu : std::exp(mu);
  return weight / (weight + (1.0 / sigma - 1.0));
}

// arXiv 2501.00103 (LTX-Video): stretches the schedule so that its last noisy step is `terminal`.
void stretch_to_terminal(std::vector<double>& sigmas, double terminal) {
  const double scale = (1.0 - sigmas.back()) / (1.0 - terminal);
  for (double& sigma : sigmas) sigma = 1.0 - (1.0 - sigma) / scale;
}

// What the scheduler's constructor leaves as sigma_min and sigma_max: float32, and already shifted
// when the shift is static (set_timesteps then shifts a second time).
double training_sigma(const SchedulerConfig& config, int timestep) {
  const float sigma = static_cast<float>(timestep) / static_cast<float>(config.num_train_timesteps);
  if (config.use_dynamic_shifting) return sigma;
  const auto shift = static_cast<float>(config.shift);
  const auto shift_less_one = static_cast<float>(config.shift - 1.0);
  return shift * sigma / (1.0F + shift_less_one * sigma);
}

}  // namespace

Schedule flow_match_schedule(const SchedulerConfig& config, int steps, int image_seq_len) {
  const double train = config.num_train_timesteps;
  if (config.shift_terminal != 0.0 && steps < 2) {
    throw UsageError("steps 1 cannot end at shift_terminal: give 2 steps or more");
  }
  auto sigmas = linspace(training_sigma(config, config.num_train_timesteps) * train,
                         training_sigma(config, 1) * train, steps);
  const double mu = config.use_dynamic_shifting ? dynamic_mu(config, image_seq_len) : 0.0;
  for (double& sigma : sigmas) {
    sigma /= train;
    sigma = config.use_dynamic_shifting ? dynamic_shift(config, mu, sigma)
                                        : static_shift(config.shift, sigma);
  }
  if (config.shift_terminal != 0.0) stretch_to_terminal(sigmas, config.shift_terminal);

  Schedule schedule;
  for (const double sigma : sigmas) {
    schedule.sigmas.push_back(static_cast<float>(sigma));
    schedule.timesteps.push_back(schedule.sigmas.back() * static_cast<float>(train));
  }
  schedule.sigmas.push_back(0.0F);
  return schedule;
}

Schedule dpm_flow_schedule(const SchedulerConfig& config, int steps, int image_seq_len) {
  if (config.use_dynamic_shifting && config.time_shift_type != "exponential") {
    throw UsageError("dpmpp-2m knows the time_shift_type exponential only: use euler or heun");
  }
  const double shift =
      config.use_dynamic_shifting ? std::exp(dynamic_mu(config, image_seq_len)) : config.shift;
  const auto alphas = linspace(1.0, 1.0 / config.num_train_timesteps, steps + 1);

  Schedule schedule;
  for (auto alpha = alphas.rbegin(); alpha + 1 != alphas.rend(); ++alpha) {
    const double sigma = static_shift(shift, 1.0 - *alpha);
    schedule.sigmas.push_back(static_cast<float>(sigma));
    // The model is called with whole timesteps, cut off, not rounded.
    schedule.timesteps.push_back(
        static_cast<float>(std::trunc(sigma * config.num_train_timesteps)));
  }
  schedule.sigmas.push_back(0.0F);
  return schedule;
}

Schedule Schedule::last(int count) const {
  if (count < 0 || count > steps()) {
    throw UsageError("the last " + std::to_string(count) + " of " + std::to_string(steps()) +
                     " steps do not exist");
  }
  Schedule tail;
  tail.sigmas.assign(sigmas.end() - (count + 1), sigmas.end());
  tail.timesteps.assign(timesteps.end() - count, timesteps.end());
  return tail;
}

}  // namespace intaglio
