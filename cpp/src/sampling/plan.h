// A sampler, written down ahead: none of ours looks at x to decide what comes next, so a run is a
// list of evaluations of the model and of what each does to x, for whatever device x is on.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/arithmetic.h"
#include "intaglio/sampling.h"

namespace intaglio {

struct Evaluation {
  StepPoint point;
  Update update;
  // Where the step began that this ends; the first of Heun's two ends none.
  std::optional<StepPoint> ended;
};

using Plan = std::vector<Evaluation>;
using Planner = Plan (*)(const Schedule&);

// See sample_euler and its siblings for the papers.
Plan plan_euler(const Schedule& schedule);
Plan plan_heun(const Schedule& schedule);
Plan plan_dpmpp_2m(const Schedule& schedule);
Plan plan_ddim(const Schedule& schedule);

// Whether a model's output is noise - clean, and not epsilon. Throws UsageError for another type.
bool predicts_velocity(const std::string& prediction_type);

// By diffusers' class. Throws UsageError for one it does not know.
Planner find_planner(const std::string& scheduler_type);

// Runs a plan on host memory; returns the number of steps done, fewer than planned when stopped.
int run_plan(const Plan& plan, const Denoiser& denoise, std::span<float> x, const OnStep& on_step);

}  // namespace intaglio
