// Which branches a step needs and how their predictions combine (arXiv 2510.11538):
//   D = D_c + lambda (D_c - D_0) + w (D_c - D_m)
#pragma once

#include <optional>
#include <vector>

#include "intaglio/cfg_rule.h"
#include "intaglio/error.h"

namespace intaglio {

// A part of a run. Step i of N is inside if start <= i / N < end.
struct Window {
  double start = 0.0;
  double end = 1.0;
  bool contains(int step, int steps) const;
};

// A value that changes linearly from the first step to the last, a constant if both are equal, or
// one value for each step.
struct Ramp {
  double first = 0.0;
  double last = 0.0;
  std::vector<double> each;  // if not empty, the value of each step; first and last are its ends
  Ramp() = default;
  Ramp(double value) : first(value), last(value) {}  // NOLINT: a constant is a ramp
  Ramp(double from, double to) : first(from), last(to) {}
  explicit Ramp(std::vector<double> values);  // at least one
  double at(int step, int steps) const;
  std::vector<double> values() const { return each.empty() ? std::vector{first, last} : each; }
  bool is_always(double value) const;
};

struct Guidance {
  Ramp cfg_scale = 1.0;  // 1 + lambda; 1 needs no unconditional branch
  Window cfg_window;
  Ramp dg_scale = 0.0;  // w; 0 needs no degraded branch
  Window dg_window;
  // 1 leaves massive channels alone, 0 suppresses them, and more amplifies them.
  Ramp ma_keep = 0.0;
  // In the steps of dg_window, massive channels of D_c's row come from another prompt's row, in
  // place of DG.
  bool transports = false;
  // Inside the reuse window, D_0 and D_m run only once in this many steps (rounded down). In the
  // other steps their differences from D_c are extrapolated, as FasterCache does for CFG (arXiv
  // 2410.19355). 1 runs them in every step. The interval must not grow over the run.
  Ramp reuse_interval = 1.0;
  Window reuse_window;
  // Inside the skip window, the model runs only once in this many steps (rounded down). In the
  // other steps D follows the straight line through its last two values, as TaylorSeer of order 1
  // does for features (arXiv 2503.06923). 1 runs it in every step. The interval must not grow.
  Ramp skip_interval = 1.0;
  Window skip_window;
  // Exactly these steps are skipped, counted from 0, instead of those by interval and window.
  std::vector<int> skip_steps;
  // A step is not skipped if the line missed the last D that was computed by more than this,
  // relative to D.
  double skip_tolerance = 0.2;
  CfgRule rule = {};
  Correction correction = {};
};

// Steps with the same branches that run before one is skipped.
inline constexpr int kRunBeforeSkip = 3;

// The weights of one step. A branch whose weight is zero does not run.
struct StepWeights {
  float lambda = 0;
  float w = 0;
  float ma_keep = 0;
  // Whether the branch's difference from D_c comes from earlier steps.
  bool reuse_unconditional = false;
  bool reuse_degraded = false;
  // Whether another prompt's row runs, and D_c's takes massive channels from it.
  bool transports = false;
  // Whether the step is skipped: no branch runs.
  bool skip = false;
  // Whether the prediction is zero, so that no branch but D_c runs.
  bool zero = false;
  bool unconditional() const { return lambda != 0; }
  // If D_m keeps everything, it equals D_c and its term is zero.
  bool degraded() const { return w != 0 && ma_keep != 1; }
  bool runs_unconditional() const { return !skip && unconditional() && !reuse_unconditional; }
  bool runs_degraded() const { return !skip && degraded() && !reuse_degraded; }
  bool runs_source() const { return !skip && transports; }
};

// Returns the weights of one step by itself, without reuse and skipping.
StepWeights weights_at(const Guidance& guidance, int step, int steps);
// Returns the weights of all steps of a run. A branch runs in the first step in which it has
// weight, in every such step outside the reuse window, and when the interval has passed since its
// last run. A step of the skip window is skipped if the model ran in three steps with its branches,
// so that the line through two of them was compared with the third, and the interval has not passed
// since the last one. skip_tolerance is left to the run.
std::vector<StepWeights> step_weights(const Guidance& guidance, int steps);

// Returns a problem for each window that is outside 0..1 or empty, for ma_keep below 0, for an
// interval that grows or is below 1, for a tolerance that is not positive, for a cfg_scale below 0,
// and for each value that is not finite.
std::vector<Problem> guidance_problems(const Guidance& guidance);

// Says what is wrong with listed steps (Guidance::skip_steps) in a run of so many steps, if
// anything is: each has to be a step of the run, after the first three, and listed once.
std::optional<Problem> skip_steps_problem(const std::vector<int>& skipped, int steps);
// Says so if a value was given as a list that has another length than a run of so many steps.
std::optional<Problem> list_problem(const Guidance& guidance, int steps);
// Throws the UsageError of the first problem.
void check_guidance(const Guidance& guidance);

}  // namespace intaglio
