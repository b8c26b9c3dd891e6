// The analytic models of the runs in tests/data/golden/runs.json, and a comparison with them.
#pragma once

#include <cmath>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "intaglio/sampling.h"
#include "sampling/plan.h"

namespace intaglio {

inline SchedulerConfig config_from(const nlohmann::json& json) {
  SchedulerConfig config;
  config.type = json.at("type");
  config.shift = json.value("shift", 1.0);
  config.num_train_timesteps = json.value("num_train_timesteps", 1000);
  config.use_dynamic_shifting = json.value("use_dynamic_shifting", false);
  config.time_shift_type = json.value("time_shift_type", "exponential");
  config.shift_terminal = json.value("shift_terminal", 0.0);
  if (json.contains("prediction_type"))
    config.prediction_type = prediction_type_from(json.at("prediction_type"));
  config.linspace_sigmas = json.value("linspace_sigmas", false);
  config.beta_start = json.value("beta_start", config.beta_start);
  config.beta_end = json.value("beta_end", config.beta_end);
  config.beta_schedule = json.value("beta_schedule", config.beta_schedule);
  config.timestep_spacing = json.value("timestep_spacing", "");
  config.steps_offset = json.value("steps_offset", 0);
  config.set_alpha_to_one = json.value("set_alpha_to_one", true);
  return config;
}

// tests/data/make_golden.py has the same two models.
inline float velocity(float x, float timestep) {
  const float t = timestep / 1000.0F;
  return std::sin(3.0F * x) + t * x - 0.5F * std::cos(2.0F * t);
}

inline float epsilon(float x, const StepPoint& point) {
  return point.sigma * x + 0.3F * point.alpha * std::sin(2.0F * x + point.timestep / 300.0F);
}

inline double relative_l2(std::span<const float> a, const std::vector<float>& b) {
  double difference = 0.0, norm = 0.0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

}  // namespace intaglio
