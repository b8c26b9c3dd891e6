#include "intaglio/guidance.h"

#include <cmath>
#include <cstddef>
#include <sstream>
#include <string>

#include "core/arithmetic.h"
#include "core/elementwise.h"
#include "intaglio/error.h"

namespace intaglio {
namespace {

// Wide enough for bounds that were computed (0.1 + 0.2), far narrower than any step.
constexpr double kBoundary = 1e-9;

void validate_window(const char* name, const Window& window) {
  // Written so that NaN fails too.
  if (window.start >= 0.0 && window.start < window.end && window.end <= 1.0) return;
  std::ostringstream message;
  message << name << " " << window.start << ":" << window.end
          << " holds no part of the run: give start < end, both within 0..1";
  throw UsageError(message.str());
}

void validate_finite(const char* name, const Ramp& ramp) {
  for (const double value : {ramp.first, ramp.last}) {
    if (!std::isfinite(static_cast<float>(value))) {
      throw UsageError(std::string(name) + " must be a finite number");
    }
  }
}

void check_size(const char* name, std::size_t size, std::size_t expected) {
  if (size == expected) return;
  throw UsageError(std::string("combine: the ") + name + " branch has " + std::to_string(size) +
                   " values, but the output has " + std::to_string(expected));
}

}  // namespace

bool Window::contains(int step, int steps) const {
  const double at = static_cast<double>(step) / static_cast<double>(steps);
  return at >= start - kBoundary && at < end - kBoundary;
}

double Ramp::at(int step, int steps) const {
  if (steps <= 1 || step <= 0) return first;
  if (step >= steps - 1) return last;
  return first + (last - first) * static_cast<double>(step) / static_cast<double>(steps - 1);
}

StepWeights weights_at(const Guidance& guidance, int step, int steps) {
  StepWeights weights;
  if (guidance.cfg_window.contains(step, steps)) {
    weights.lambda = static_cast<float>(guidance.cfg_scale.at(step, steps) - 1.0);
  }
  if (guidance.dg_window.contains(step, steps)) {
    weights.w = static_cast<float>(guidance.dg_scale.at(step, steps));
  }
  weights.keep = static_cast<float>(guidance.ma_keep.at(step, steps));
  return weights;
}

std::vector<StepWeights> step_weights(const Guidance& guidance, int steps) {
  std::vector<StepWeights> all;
  int since_unconditional = 0, since_degraded = 0;  // steps from a branch's last run; 0: none yet
  for (int step = 0; step < steps; ++step) {
    StepWeights weights = weights_at(guidance, step, steps);
    const auto interval = static_cast<int>(guidance.reuse_interval.at(step, steps) + kBoundary);
    const bool inside = guidance.reuse_window.contains(step, steps);
    const auto reuse = [&](bool has_weight, int& since) {
      const bool reused = has_weight && inside && since > 0 && since < interval;
      since = !has_weight ? 0 : reused ? since + 1 : 1;
      return reused;
    };
    weights.reuse_unconditional = reuse(weights.unconditional(), since_unconditional);
    weights.reuse_degraded = reuse(weights.degraded(), since_degraded);
    all.push_back(weights);
  }
  return all;
}

void validate(const Guidance& guidance) {
  validate_finite("cfg-scale", guidance.cfg_scale);
  validate_finite("dg-scale", guidance.dg_scale);
  validate_window("cfg-window", guidance.cfg_window);
  validate_window("dg-window", guidance.dg_window);
  for (const double keep : {guidance.ma_keep.first, guidance.ma_keep.last}) {
    if (keep >= 0.0 && keep <= 1.0) continue;
    std::ostringstream message;
    message << "ma-keep " << keep
            << " is outside 0..1: 1 leaves massive channels alone, 0 suppresses them";
    throw UsageError(message.str());
  }
  validate_window("reuse-window", guidance.reuse_window);
  const Ramp& interval = guidance.reuse_interval;
  // More steps than any run has; written so that NaN fails too.
  if (!(interval.first >= interval.last && interval.last >= 1.0 && interval.first <= 1e6)) {
    std::ostringstream message;
    message << "reuse-interval " << interval.first;
    if (interval.first != interval.last) message << ":" << interval.last;
    message << (interval.first < interval.last ? " grows: the first number is the larger, as in 3:2"
                                               : " is no number of steps: give 1 or more");
    throw UsageError(message.str());
  }
}

void combine(std::span<float> out, std::span<const float> conditional,
             std::span<const float> unconditional, std::span<const float> degraded,
             const StepWeights& weights) {
  const std::size_t size = out.size();
  check_size("conditional", conditional.size(), size);
  if (weights.unconditional()) check_size("unconditional", unconditional.size(), size);
  if (weights.degraded()) check_size("degraded", degraded.size(), size);

  const Combine guided{weights.lambda,     weights.w, weights.unconditional(),
                       weights.degraded(), {},        {}};
  INTAGLIO_ELEMENTWISE
  for (std::size_t i = 0; i < size; ++i) {
    out[i] = guided(conditional.data(), unconditional.data(), degraded.data(), i);
  }
}

}  // namespace intaglio
