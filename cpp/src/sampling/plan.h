// A sampler's run as a list that is made ahead: none of our samplers looks at x to decide what
// comes next. Each evaluation of the model is followed by an update of x, on whatever device x is.
#pragma once

#include <optional>
#include <string>
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
// DDIM, arXiv 2010.02502 equation 12 with eta 0.
Plan plan_ddim(const Schedule& schedule);

// Returns the planner of diffusers' class. Throws UsageError for a class that it does not know.
Planner find_planner(const std::string& scheduler_type);

}  // namespace intaglio
