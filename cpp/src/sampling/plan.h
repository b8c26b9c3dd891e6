// A sampler's run as a list that is made ahead: none of our samplers looks at x to decide what
// comes next. Each evaluation of the model is followed by an update of x, on whatever device x is.
#pragma once

#include <algorithm>
#include <optional>
#include <variant>
#include <vector>

#include "core/arithmetic.h"
#include "intaglio/sampling.h"

namespace intaglio {

// Where a sampler calls the model: in `step` of `steps`, which Heun's two evaluations share.
struct StepPoint {
  int step = 0;
  int steps = 0;
  float sigma = 0;
  float timestep = 0;
  float alpha = 0;
};

struct Evaluation {
  StepPoint point;
  Update update;
  // The point at which the step began that this evaluation ends. The first of Heun's two
  // evaluations ends none.
  std::optional<StepPoint> ended;
};

using Plan = std::vector<Evaluation>;
using Planner = Plan (*)(const Schedule&);

// Euler's method on the probability flow, arXiv 2206.00364 algorithm 1 without churn; flow matching
// only.
Plan plan_euler(const Schedule& schedule);
// Heun's second-order method, arXiv 2206.00364 algorithm 1; the last step is Euler's; flow matching
// only.
Plan plan_heun(const Schedule& schedule);
// DPM-Solver++(2M), arXiv 2211.01095 algorithm 2, with lambda = log(alpha / sigma).
Plan plan_dpmpp_2m(const Schedule& schedule);
// SDE-DPM-Solver++(2M), arXiv 2211.01095 appendix B: the same with noise that is new in each step.
Plan plan_dpmpp_2m_sde(const Schedule& schedule);
// UniPC of order 2 with B(h) = e^h - 1, arXiv 2302.04867 algorithm 1: DPM-Solver++(2M), in which
// each evaluation first corrects the x that it was made at.
Plan plan_unipc(const Schedule& schedule);
// Multistep consistency sampling, arXiv 2310.04378: the predicted clean data, noised anew; flow
// matching only.
Plan plan_lcm(const Schedule& schedule);
// Euler's step to less noise than the step ends with, and new noise up to that, as
// LTXEulerAncestralRFScheduler with eta 1; flow matching only.
Plan plan_euler_ancestral(const Schedule& schedule);
// DDIM, arXiv 2010.02502 equation 12 with eta 0.
Plan plan_ddim(const Schedule& schedule);

// Whether any update of the plan is of this kind.
template <typename AnyUpdate>
bool has_update(const Plan& plan) {
  return std::ranges::any_of(plan, [](const Evaluation& evaluation) {
    return std::holds_alternative<AnyUpdate>(evaluation.update);
  });
}

// Returns the planner of diffusers' class. Throws UsageError for a class that it does not know.
Planner find_planner(const SchedulerConfig& config);
// Whether that sampler adds noise in its steps.
bool adds_noise(const SchedulerConfig& config);

}  // namespace intaglio
