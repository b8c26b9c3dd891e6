#include "sampling/schedule.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "intaglio/error.h"

namespace intaglio {

std::vector<double> linspace(double start, double stop, int count) {
  std::vector<double> values(static_cast<std::size_t>(count));
  const double step = count > 1 ? (stop - start) / (count - 1) : 0.0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<double>(i) * step + start;
  }
  if (count > 1) values.back() = stop;
  return values;
}

namespace {

template <typename T>
T static_shift(double shift, T sigma) {
  return static_cast<T>(shift) * sigma / (T{1} + static_cast<T>(shift - 1.0) * sigma);
}

// compute_empirical_mu of diffusers' FLUX.2 pipelines: lines that fit 10 and 200 steps, and the
// line through both for other numbers of steps. Beyond 4300 tokens it is that of 200 steps.
double empirical_mu(int steps, int image_seq_len) {
  const double at_200 = 0.00016927 * image_seq_len + 0.45666666;
  if (image_seq_len > 4300) return at_200;
  const double at_10 = 8.73809524e-05 * image_seq_len + 1.89833333;
  const double slope = (at_200 - at_10) / 190.0;
  return slope * steps + (at_200 - 200.0 * slope);
}

// By default linear in the number of latent patches: calculate_shift of diffusers' pipelines.
double dynamic_mu(const SchedulerConfig& config, int steps, int image_seq_len) {
  if (config.empirical_mu) return empirical_mu(steps, image_seq_len);
  const double slope = (config.max_shift - config.base_shift) /
                       (config.max_image_seq_len - config.base_image_seq_len);
  return image_seq_len * slope + (config.base_shift - slope * config.base_image_seq_len);
}

template <typename T>
T dynamic_shift(const SchedulerConfig& config, double mu, T sigma) {
  const auto weight = static_cast<T>(config.time_shift_type == "linear" ? mu : std::exp(mu));
  return weight / (weight + (T{1} / sigma - T{1}));
}

// arXiv 2501.00103 (LTX-Video): stretches the schedule so that its last noisy step is `terminal`.
template <typename T>
void stretch_to_terminal(std::vector<T>& sigmas, double terminal) {
  const T scale = (T{1} - sigmas.back()) / static_cast<T>(1.0 - terminal);
  for (T& sigma : sigmas) sigma = T{1} - (T{1} - sigma) / scale;
}

// Works in the precision of diffusers: float32 where the pipeline gives the sigmas.
template <typename T>
std::vector<T> shift_sigmas(const SchedulerConfig& config, std::vector<T> sigmas, double mu) {
  for (T& sigma : sigmas) {
    sigma = config.use_dynamic_shifting ? dynamic_shift(config, mu, sigma)
                                        : static_shift(config.shift, sigma);
  }
  if (config.shift_terminal != 0.0) stretch_to_terminal(sigmas, config.shift_terminal);
  return sigmas;
}

// The sum of (1 - b)_n / n! x^(a + n) / (a + n): the integral of t^(a-1) (1-t)^(b-1) to x <= 1/2.
double incomplete_beta(double x, double a, double b) {
  double sum = 0.0, term = std::pow(x, a);
  for (int n = 0; term > 1e-18; ++n) {
    sum += term / (a + n);
    term *= x * (n + 1.0 - b) / (n + 1.0);
  }
  return sum;
}

// The x below which a variable of the distribution Beta(0.6, 0.6) is with `probability`.
double beta_quantile(double probability) {
  if (probability <= 0.0) return 0.0;
  if (probability > 0.5) return 1.0 - beta_quantile(1.0 - probability);  // it is symmetric
  constexpr double shape = 0.6;
  const double wanted = probability * 2.0 * incomplete_beta(0.5, shape, shape);
  double low = 0.0, high = 0.5;
  for (int halving = 0; halving < 60; ++halving) {
    const double middle = (low + high) / 2.0;
    (incomplete_beta(middle, shape, shape) < wanted ? low : high) = middle;
  }
  return high;
}

// Spaces the sigmas anew between the first and the last one, as diffusers' _convert_to_karras
// (arXiv 2206.00364), _convert_to_exponential and _convert_to_beta (arXiv 2407.12173) do.
std::vector<float> spaced(const std::string& spacing, const std::vector<float>& sigmas) {
  if (spacing.empty()) return sigmas;
  const double first = sigmas.front(), last = sigmas.back();
  std::vector<float> made;
  for (const double at : linspace(0.0, 1.0, static_cast<int>(sigmas.size()))) {
    double sigma = 0.0;
    if (spacing == "karras") {
      constexpr double rho = 7.0;
      const double begin = std::pow(first, 1.0 / rho), end = std::pow(last, 1.0 / rho);
      sigma = std::pow(begin + at * (end - begin), rho);
    } else if (spacing == "exponential") {
      sigma = std::exp(std::log(first) + at * (std::log(last) - std::log(first)));
    } else {
      sigma = last + beta_quantile(1.0 - at) * (first - last);
    }
    made.push_back(static_cast<float>(sigma));
  }
  return made;
}

// Adds the last sigma, 0, and alpha = 1 - sigma.
Schedule flow_schedule(std::vector<float> sigmas, std::vector<float> timesteps) {
  sigmas.push_back(0.0F);
  std::vector<float> alphas;
  for (const float sigma : sigmas) alphas.push_back(1.0F - sigma);
  return {std::move(sigmas), std::move(timesteps), std::move(alphas), {}, {}};
}

// The sigma_min or sigma_max that the scheduler's constructor leaves: float32, and already shifted
// when the shift is static. set_timesteps then shifts a second time.
double training_sigma(const SchedulerConfig& config, int timestep) {
  const float sigma = static_cast<float>(timestep) / static_cast<float>(config.num_train_timesteps);
  return config.use_dynamic_shifting ? sigma : static_shift(config.shift, sigma);
}

void check_terminal(const SchedulerConfig& config, int steps) {
  if (config.shift_terminal != 0.0 && steps < 2)
    throw UsageError("--steps 1 cannot end at shift_terminal: give 2 steps or more");
}

// Multistep solvers space flow sigmas in one way only.
void check_spacing(const SchedulerConfig& config, const std::string& name) {
  if (!config.spacing.empty())
    throw UsageError(name + " has no " + config.spacing + " sigmas: use euler or heun");
}

}  // namespace

Schedule flow_match_schedule(const SchedulerConfig& config, int steps, int image_seq_len) {
  const double train = config.num_train_timesteps;
  check_terminal(config, steps);
  const double mu = config.use_dynamic_shifting ? dynamic_mu(config, steps, image_seq_len) : 0.0;
  std::vector<float> sigmas;
  const bool heun = config.type == "FlowMatchHeunDiscreteScheduler";
  if (config.linspace_sigmas && !heun) {
    const auto given = linspace(1.0, 1.0 / steps, steps);
    sigmas = shift_sigmas(config, std::vector<float>(given.begin(), given.end()), mu);
  } else {
    auto own = linspace(training_sigma(config, config.num_train_timesteps) * train,
                        training_sigma(config, 1) * train, steps);
    for (double& sigma : own) sigma /= train;
    own = shift_sigmas(config, std::move(own), mu);
    sigmas.assign(own.begin(), own.end());
  }
  if (!heun) sigmas = spaced(config.spacing, sigmas);
  std::vector<float> timesteps;
  for (const float sigma : sigmas) timesteps.push_back(sigma * static_cast<float>(train));
  return flow_schedule(std::move(sigmas), std::move(timesteps));
}

Schedule dpm_flow_schedule(const SchedulerConfig& config, int steps, int image_seq_len) {
  const std::string name = config.sde ? "dpmpp-2m-sde" : "dpmpp-2m";
  if (config.use_dynamic_shifting && config.time_shift_type != "exponential") {
    throw UsageError(name + " has the time_shift_type exponential only: use euler or heun");
  }
  check_spacing(config, name);
  const double shift = config.use_dynamic_shifting
                           ? std::exp(dynamic_mu(config, steps, image_seq_len))
                           : config.shift;
  const auto alphas = linspace(1.0, 1.0 / config.num_train_timesteps, steps + 1);

  std::vector<float> sigmas, timesteps;
  for (auto alpha = alphas.rbegin(); alpha + 1 != alphas.rend(); ++alpha) {
    const double sigma = static_shift(shift, 1.0 - *alpha);
    sigmas.push_back(static_cast<float>(sigma));
    // The model is called with whole timesteps, which are cut off and not rounded.
    timesteps.push_back(static_cast<float>(std::trunc(sigma * config.num_train_timesteps)));
  }
  return flow_schedule(std::move(sigmas), std::move(timesteps));
}

Schedule unipc_flow_schedule(const SchedulerConfig& config, int steps, int image_seq_len) {
  check_spacing(config, "unipc");
  check_terminal(config, steps);
  const double mu = config.use_dynamic_shifting ? dynamic_mu(config, steps, image_seq_len) : 0.0;
  auto sigmas = linspace(1.0, 1.0 / config.num_train_timesteps, steps + 1);
  sigmas.pop_back();
  sigmas = shift_sigmas(config, std::move(sigmas), mu);
  constexpr double epsilon = 1e-6;  // at sigma 1 the log signal-to-noise ratio is infinite
  if (std::abs(sigmas.front() - 1.0) < epsilon) sigmas.front() -= epsilon;
  std::vector<float> timesteps;
  for (const double sigma : sigmas)
    timesteps.push_back(static_cast<float>(std::trunc(sigma * config.num_train_timesteps)));
  return flow_schedule({sigmas.begin(), sigmas.end()}, std::move(timesteps));
}

Schedule Schedule::last(int count) const {
  if (count < 0 || count > steps()) {
    throw UsageError("the last " + std::to_string(count) + " of " + std::to_string(steps()) +
                     " steps do not exist");
  }
  Schedule tail;
  tail.sigmas.assign(sigmas.end() - (count + 1), sigmas.end());
  tail.timesteps.assign(timesteps.end() - count, timesteps.end());
  tail.alphas.assign(alphas.end() - (count + 1), alphas.end());
  if (!end_sigmas.empty()) {
    tail.end_sigmas.assign(end_sigmas.end() - count, end_sigmas.end());
    tail.end_alphas.assign(end_alphas.end() - count, end_alphas.end());
  }
  return tail;
}

}  // namespace intaglio
