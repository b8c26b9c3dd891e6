#include "pipeline/unused_guidance.h"

#include <algorithm>
#include <map>
#include <sstream>

namespace intaglio {

namespace {

struct Part {
  const Ramp& scale;
  double off;  // the scale that turns it off
  const Window& window;
};

// Says why no step has it; `steps` is their number.
std::string reason(const Part& part, int steps) {
  std::ostringstream text;
  bool inside = false;
  for (int step = 0; step < steps; ++step) inside |= part.window.contains(step, steps);
  if (part.scale.is_always(part.off) || inside) {
    text << "its scale is " << part.off;
  } else {
    text << "its window " << part.window.start << ":" << part.window.end
         << (steps == 1 ? " does not hold the only step"
                        : " holds none of the " + std::to_string(steps) + " steps");
  }
  return text.str();
}

constexpr int kCheckedRow = 5;  // the longest row that caches of diffusers skip by default

int longest_row_of_skips(const Request& request) {
  int longest = 0, row = 0;
  for (const StepWeights& step : request.weights) {
    row = step.skip ? row + 1 : 0;
    longest = std::max(longest, row);
  }
  return longest;
}

// Lists the schedules of the bundle: "6 or 28 steps of FlowMatchEulerDiscreteScheduler".
std::string listed_schedules(const Bundle& bundle) {
  std::map<std::string, std::string> steps;  // by scheduler
  for (const SkipSchedule& schedule : bundle.skipping) {
    std::string& list = steps[schedule.scheduler];
    list += (list.empty() ? "" : " or ") + std::to_string(schedule.steps);
  }
  std::string text;
  for (const auto& [scheduler, list] : steps)
    text += (text.empty() ? "" : ", or ") + list + " steps of " + scheduler;
  return text;
}

// Says why --skip auto skips no step, and what to do.
std::string no_schedule(const Bundle& bundle, const Request& request) {
  const std::string steps = std::to_string(*request.asked.steps);
  if (request.asked.image) return "schedules are for runs that start from noise: give --skip-steps";
  if (*request.asked.steps <= kRunBeforeSkip) {
    return "the first " + std::to_string(kRunBeforeSkip) + " always run, and this run has " +
           steps + ": give more --steps";
  }
  const std::string others =
      bundle.skipping.empty() ? "" : ", only for " + listed_schedules(bundle);
  return "the bundle has no schedule for " + steps + " steps of this scheduler" + others +
         "; `python -m intaglio.analysis.skipping SOURCE --steps " + steps +
         " --evaluations B` finds one in which the model runs B times, and exporting SOURCE again "
         "takes it into the bundle";
}

bool has_below(const Ramp& scale, double limit) { return std::ranges::min(scale.values()) < limit; }

// Says that a scale steers away from what people want.
void mention_reversed(const Request& request, std::vector<std::string>& notes) {
  if (request.unconditional && has_below(*request.asked.cfg_scale, 1)) {
    notes.emplace_back(
        "a --cfg-scale below 1 steers away from the prompt: 1, not 0, turns CFG off");
  }
  if (std::ranges::any_of(request.weights,
                          [](auto& step) { return step.degraded() && step.w < 0; }))
    notes.emplace_back("a --dg-scale below 0 removes detail: 0 turns Detail Guidance off");
}

}  // namespace

std::vector<std::string> unused_guidance(const Bundle& bundle, const GenerateOptions& given,
                                         const Request& request) {
  const GenerateOptions& asked = request.asked;
  const int steps = request.schedule.steps();
  std::vector<std::string> notes;
  mention_reversed(request, notes);
  const Part cfg{.scale = *asked.cfg_scale, .off = 1, .window = *asked.cfg_window};
  const bool negative = !given.negative_prompt.empty();
  const bool asks_for_cfg =
      given.cfg_scale ? !given.cfg_scale->is_always(cfg.off) : given.cfg_window.has_value();
  if ((negative || asks_for_cfg) && !request.unconditional) {
    notes.push_back("no step has CFG" +
                    std::string(negative ? ", so the negative prompt is not used" : "") + ": " +
                    reason(cfg, steps));
  }
  const Part dg{.scale = *asked.dg_scale, .off = 0, .window = *asked.dg_window};
  const bool asks_for_dg = given.dg_scale ? !given.dg_scale->is_always(dg.off)
                                          : given.dg_window || given.ma_keep || given.ma_tokens ||
                                                given.ma_keep_by || given.dg_region ||
                                                !given.ma_channels.empty();
  if (asked.transport_from) {
    if (std::ranges::none_of(request.weights, &StepWeights::transports))
      notes.emplace_back(
          "no step takes channels of --transport-from: --dg-window holds none of them, or "
          "--ma-keep is 1");
  } else if (asks_for_dg && std::ranges::none_of(request.weights, &StepWeights::degraded)) {
    const bool kept = std::ranges::any_of(request.weights, [](auto& step) { return step.w != 0; });
    notes.push_back("no step has Detail Guidance: " +
                    (kept ? "ma_keep is 1, which suppresses nothing" : reason(dg, steps)));
  }
  if (request.skips_layers() && std::ranges::none_of(request.weights, &StepWeights::degraded))
    notes.emplace_back(
        "no step skips layers: --slg-window holds none of them, or --slg-scale is 0");
  const bool listed = !asked.skip_steps.empty();
  if (given.skip && !listed) {
    notes.push_back("no step is skipped: " + no_schedule(bundle, request));
  } else if ((listed || (asked.skip_interval && asked.skip_interval->first >= 2)) &&
             std::ranges::none_of(request.weights, &StepWeights::skip)) {
    notes.push_back(
        std::string("no step is skipped: ") +
        (listed ? "three steps with the same branches have to run before one is skipped"
                : "the interval needs three steps with the same branches before it, and a step in "
                  "its window"));
  }
  if (const int row = longest_row_of_skips(request); row > kCheckedRow) {
    notes.push_back(std::to_string(row) +
                    " steps in a row are skipped, and nothing checks them until the model runs "
                    "again: the picture may be far off");
  }
  return notes;
}

}  // namespace intaglio
