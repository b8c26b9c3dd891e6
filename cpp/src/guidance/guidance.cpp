#include "intaglio/guidance.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>

#include "intaglio/error.h"

namespace intaglio {
namespace {

// Wide enough for bounds that were computed (0.1 + 0.2), far less than any step.
constexpr double kBoundary = 1e-9;

// "dg_window" and 0.7 as "--dg-window 0.7".
std::string named(const std::string& field, const std::string& value) {
  std::string flag = "--" + field;
  std::ranges::replace(flag, '_', '-');
  return flag + " " + value;
}

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

void validate_window(const char* field, const Window& window, std::vector<Problem>& problems) {
  // Written so that NaN fails too.
  if (window.start >= 0.0 && window.start < window.end && window.end <= 1.0) return;
  problems.push_back(
      {field, named(field, text(window.start, ":", window.end,
                                " holds no part of the run: give start < end, both within 0..1"))});
}

void validate_finite(const char* field, const Ramp& ramp, std::vector<Problem>& problems) {
  for (const double value : ramp.values()) {
    if (std::isfinite(static_cast<float>(value))) continue;
    problems.push_back({field, named(field, "must be a finite number")});
    return;
  }
}

void validate_cfg_scale(const Ramp& scale, std::vector<Problem>& problems) {
  validate_finite("cfg_scale", scale, problems);
  const double least = std::ranges::min(scale.values());
  if (!std::isfinite(least) || least >= 0.0) return;
  problems.push_back(
      {"cfg_scale",
       named("cfg_scale", text(least, " is below 0: give 1, which turns CFG off, or more"))});
}

void validate_ma_keep(const Ramp& ma_keep, std::vector<Problem>& problems) {
  for (const double value : ma_keep.values()) {
    if (value >= 0.0 && std::isfinite(static_cast<float>(value))) continue;
    problems.push_back(
        {"ma_keep",
         named("ma_keep",
               text(value,
                    " is not 0 or more: 1 leaves massive channels alone, 0 suppresses them"))});
    return;
  }
}

void validate_interval(const char* field, const Ramp& interval, std::vector<Problem>& problems) {
  if (!interval.each.empty()) {
    problems.push_back({field, named(field, "takes a number or two, such as 3:2, and no list")});
    return;
  }
  // More steps than any run has; written so that NaN fails too.
  if (interval.first >= interval.last && interval.last >= 1.0 && interval.first <= 1e6) return;
  const std::string value = interval.first == interval.last
                                ? text(interval.first)
                                : text(interval.first, ":", interval.last);
  problems.push_back(
      {field, named(field, value + (interval.first < interval.last
                                        ? " grows: the first number is the larger, as in 3:2"
                                        : " is not a number of steps: give 1 or more"))});
}

void validate_tolerance(double tolerance, std::vector<Problem>& problems) {
  if (tolerance > 0.0 && std::isfinite(tolerance)) return;
  problems.push_back(
      {"skip_tolerance", named("skip_tolerance", text(tolerance,
                                                      " is no relative distance: give a number "
                                                      "above 0, such as 0.2"))});
}

void validate_steps(const std::vector<int>& steps, std::vector<Problem>& problems) {
  const auto wrong = std::ranges::find_if(steps, [](int step) { return step < 0; });
  if (wrong == steps.end()) return;
  problems.push_back(
      {"skip_steps", named("skip_steps", text(*wrong, " is not a step: give numbers from 0"))});
}

void validate_rule(const CfgRule& rule, const Correction& correction,
                   std::vector<Problem>& problems) {
  const auto check = [&](const char* field, double value, double least, double most,
                         const char* range) {
    if (value >= least && value <= most) return;  // which NaN is not
    problems.push_back({field, named(field, text(value, " is outside its range: give ", range))});
  };
  constexpr double kLargest = 1e6;
  check("guidance_eta", rule.eta, -kLargest, kLargest, "a number such as 0, or 1 as in CFG");
  check("guidance_norm_threshold", rule.norm_threshold, 0, kLargest,
        "0, which is no limit, or more");
  check("guidance_momentum", rule.momentum, -1, 1, "a number from -1 to 1");
  check("guidance_zero_steps", rule.zero_steps, 0, kLargest, "0 or more");
  check("guidance_alpha", rule.alpha, 0, kLargest, "0, which is CFG, or more");
  check("guidance_rescale", rule.rescale, 0, 1, "a number from 0 to 1");
  check("guidance_normalization", rule.normalization, 0, kLargest, "0, which is no limit, or more");
  check("guidance_tag", correction.tag, 0, kLargest, "1, which is off, or more");
  check("guidance_prev", correction.prev, -kLargest, kLargest, "a number such as 0.5");
}

// Chooses the steps that are skipped.
class SkipPlan {
 public:
  explicit SkipPlan(const Guidance& guidance) : guidance_(guidance) {}

  // Must be called for every step, in order.
  bool next(const StepWeights& weights, int step, int steps) {
    const std::tuple branches(weights.unconditional(), weights.degraded(), weights.transports,
                              weights.zero);
    if (std::exchange(branches_, branches) != branches) runs_ = 0;
    const bool skipped = runs_ >= kRunBeforeSkip && asks_for(step, steps);
    runs_ += skipped ? 0 : 1;
    since_ = skipped ? since_ + 1 : 1;
    return skipped;
  }

 private:
  [[nodiscard]] bool asks_for(int step, int steps) const {
    const std::vector<int>& listed = guidance_.skip_steps;
    if (!listed.empty()) return std::ranges::find(listed, step) != listed.end();
    const auto interval = static_cast<int>(guidance_.skip_interval.at(step, steps) + kBoundary);
    return since_ < interval && guidance_.skip_window.contains(step, steps);
  }

  const Guidance& guidance_;
  std::tuple<bool, bool, bool, bool> branches_;  // of the last step, and whether its D was zero
  int runs_ = 0;                                 // steps that ran these branches
  int since_ = 0;                                // steps from the last one that ran
};

}  // namespace

bool Window::contains(int step, int steps) const {
  const double at = static_cast<double>(step) / static_cast<double>(steps);
  return at >= start - kBoundary && at < end - kBoundary;
}

Ramp::Ramp(std::vector<double> values)
    : first(values.front()), last(values.back()), each(std::move(values)) {}

bool Ramp::is_always(double value) const {
  return std::ranges::all_of(values(), [&](double at) { return at == value; });
}

double Ramp::at(int step, int steps) const {
  const auto listed = static_cast<std::size_t>(std::max(step, 0));
  if (!each.empty()) return each[std::min(listed, each.size() - 1)];
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
  weights.ma_keep = static_cast<float>(guidance.ma_keep.at(step, steps));
  weights.transports =
      guidance.transports && guidance.dg_window.contains(step, steps) && weights.ma_keep != 1;
  weights.zero = guidance.rule.kind == CfgRule::Kind::cfg_zero && step < guidance.rule.zero_steps;
  if (weights.zero) weights.lambda = weights.w = 0;
  return weights;
}

std::vector<StepWeights> step_weights(const Guidance& guidance, int steps) {
  std::vector<StepWeights> all;
  int since_unconditional = 0, since_degraded = 0;  // steps from a branch's last run; 0: none yet
  SkipPlan plan(guidance);
  for (int step = 0; step < steps; ++step) {
    StepWeights weights = weights_at(guidance, step, steps);
    const auto interval = static_cast<int>(guidance.reuse_interval.at(step, steps) + kBoundary);
    const bool inside = guidance.reuse_window.contains(step, steps);
    weights.skip = plan.next(weights, step, steps);
    // A step that is skipped computes no difference. If it runs after all, it runs every branch.
    const auto reuse = [&](bool has_weight, int& since) {
      const bool reused = !weights.skip && has_weight && inside && since > 0 && since < interval;
      since = !has_weight ? 0 : weights.skip || reused ? since + 1 : 1;
      return reused;
    };
    weights.reuse_unconditional = reuse(weights.unconditional(), since_unconditional);
    weights.reuse_degraded = reuse(weights.degraded(), since_degraded);
    all.push_back(weights);
  }
  return all;
}

std::vector<Problem> guidance_problems(const Guidance& guidance) {
  std::vector<Problem> problems;
  validate_cfg_scale(guidance.cfg_scale, problems);
  validate_finite("dg_scale", guidance.dg_scale, problems);
  validate_window("cfg_window", guidance.cfg_window, problems);
  validate_window("dg_window", guidance.dg_window, problems);
  validate_ma_keep(guidance.ma_keep, problems);
  validate_window("reuse_window", guidance.reuse_window, problems);
  validate_interval("reuse_interval", guidance.reuse_interval, problems);
  validate_window("skip_window", guidance.skip_window, problems);
  validate_interval("skip_interval", guidance.skip_interval, problems);
  validate_steps(guidance.skip_steps, problems);
  validate_tolerance(guidance.skip_tolerance, problems);
  validate_rule(guidance.rule, guidance.correction, problems);
  return problems;
}

std::optional<Problem> skip_steps_problem(const std::vector<int>& skipped, int steps) {
  const auto problem = [](const std::string& message) {
    return Problem{"skip_steps", named("skip_steps", message)};
  };
  for (auto step = skipped.begin(); step != skipped.end(); ++step) {
    if (*step < kRunBeforeSkip || *step >= steps) {
      return problem(text(*step, " cannot be skipped in a run of ", steps, " steps",
                          steps > kRunBeforeSkip
                              ? text(": give numbers from ", kRunBeforeSkip, " to ", steps - 1)
                              : text(", since the first ", kRunBeforeSkip,
                                     " always run: leave it out, or give more --steps")));
    }
    if (std::find(skipped.begin(), step, *step) != step)
      return problem(text(*step, " is given twice: give each step once"));
  }
  return std::nullopt;
}

std::optional<Problem> list_problem(const Guidance& guidance, int steps) {
  for (const auto& [field, ramp] :
       {std::pair{"cfg_scale", &guidance.cfg_scale}, std::pair{"dg_scale", &guidance.dg_scale},
        std::pair{"ma_keep", &guidance.ma_keep}}) {
    if (ramp->each.empty() || std::cmp_equal(ramp->each.size(), steps)) continue;
    return Problem{field, named(field, text("lists ", ramp->each.size(), " values and the run has ",
                                            steps, " steps: give one value for each step"))};
  }
  return std::nullopt;
}

void check_guidance(const Guidance& guidance) {
  const std::vector<Problem> problems = guidance_problems(guidance);
  if (!problems.empty()) throw_problem(problems.front());
}

}  // namespace intaglio
