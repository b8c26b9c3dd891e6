#include "core/step_table.h"

#include <array>
#include <variant>

#include "core/rule_weights.h"

namespace intaglio {

namespace {

// The weights of x, denoised, previous_denoised, previous_x and noise, and what is remembered.
struct Sum {
  double x = 0, denoised = 0, previous_denoised = 0, previous_x = 0, noise = 0;
  bool keeps_denoised = false, keeps_x = false;
  UnipcCorrector corrector = {};
};

Sum euler(double sigma, double dt) { return {.x = 1 + dt / sigma, .denoised = -dt / sigma}; }

Sum sum_of(const EulerUpdate& update) { return euler(update.sigma, update.dt); }

Sum sum_of(const HeunPredict& update) {
  Sum sum = euler(update.sigma, update.dt);
  sum.keeps_denoised = sum.keeps_x = true;
  return sum;
}

Sum sum_of(const HeunCorrect& update) {
  const double half = 0.5 * update.dt;
  return {.x = half / update.sigma,
          .denoised = -half / update.sigma,
          .previous_denoised = -half / update.begin_sigma,
          .previous_x = 1 + half / update.begin_sigma};
}

Sum sum_of(const Dpmpp2mUpdate& update) {
  const double gain = update.gain, bend = update.bend;
  return {.x = update.decay,
          .denoised = gain * (1 + bend),
          .previous_denoised = -gain * bend,
          .keeps_denoised = true};
}

Sum sum_of(const NoisyUpdate& update) {
  Sum sum = sum_of(update.mean);
  sum.noise = update.deviation;
  return sum;
}

Sum sum_of(const UnipcUpdate& update) {
  Sum sum = sum_of(update.predictor);
  sum.keeps_x = true;
  sum.corrector = update.corrector;
  return sum;
}

Sum sum_of(const DdimUpdate& update) {
  const double ratio = static_cast<double>(update.next_sigma) / update.sigma;
  return {.x = ratio, .denoised = update.next_alpha - ratio * update.alpha};
}

// The weights of a difference: of a fresh one, and of the line through the two cached ones.
std::array<float, 3> weights_of(bool used, const Delta& delta) {
  if (!used) return {0, 0, 0};
  if (!delta.reused) return {1, 0, 0};
  return {0, 1 + delta.slope, -delta.slope};
}

void write_rule(const Combine& combine, const ToDenoised& to_denoised, float* row) {
  const CfgRule& rule = combine.rule;
  row[kEta] = static_cast<float>(rule.eta);
  row[kNormThreshold] = static_cast<float>(norm_limit(rule));
  row[kRuleAlpha] = static_cast<float>(rule.alpha);
  row[kRescale] = static_cast<float>(rule.rescale);
  const bool limits = rule.normalization > 0 && combine.has_unconditional;
  row[kNormalization] = limits ? static_cast<float>(rule.normalization) : 1e15F;
  row[kUses] = combine.zero ? 0 : 1;
  row[kSlope] = to_denoised.slope();
  row[kMomentum] = static_cast<float>(rule.momentum);
  row[kKeepsMomentum] = combine.has_unconditional ? 1 : 0;
  row[kTag] = static_cast<float>(combine.correction.tag);
  row[kPrev] = static_cast<float>(combine.correction.prev);
}

}  // namespace

void write_step(const StepNumbers& numbers, float* row) {
  const auto& [combine, line, to_denoised, update, left] = numbers;
  row[kLambda] = combine.has_unconditional ? combine.lambda : 0;
  row[kW] = combine.has_degraded ? combine.w : 0;
  row[kSigma] = to_denoised.sigma;
  row[kAlpha] = to_denoised.velocity ? 1 : to_denoised.alpha;
  const Sum sum = std::visit([](const auto& any) { return sum_of(any); }, update);
  row[kCorrectedX] = sum.corrector.x;
  row[kCorrectedPreviousX] = sum.corrector.previous_x;
  row[kCorrectedDenoised] = sum.corrector.denoised;
  row[kCorrectedPreviousDenoised] = sum.corrector.previous_denoised;
  row[kCorrectedOlderDenoised] = sum.corrector.older_denoised;
  row[kX] = static_cast<float>(sum.x);
  row[kDenoised] = static_cast<float>(sum.denoised);
  row[kPreviousDenoised] = static_cast<float>(sum.previous_denoised);
  row[kPreviousX] = static_cast<float>(sum.previous_x);
  row[kNoise] = static_cast<float>(sum.noise);
  row[kKeepsDenoised] = sum.keeps_denoised ? 1 : 0;
  row[kKeepsX] = sum.keeps_x ? 1 : 0;
  const auto unconditional = weights_of(combine.has_unconditional, combine.unconditional_delta);
  const auto degraded = weights_of(combine.has_degraded, combine.degraded_delta);
  for (std::size_t i = 0; i < unconditional.size(); ++i) {
    row[kUnconditionalFresh + i] = unconditional[i];
    row[kDegradedFresh + i] = degraded[i];
  }
  write_rule(combine, to_denoised, row);
  row[kKeepsGuided] = line.skipped || combine.zero ? 0 : 1;
  row[kRuns] = line.skipped ? 0 : 1;
  row[kMovesOn] = line.skipped || line.same_time ? 0 : 1;
  row[kLineNewer] = 1 + line.slope;
  row[kLineOlder] = -line.slope;
  row[kKeptClean] = left.alpha;
  row[kKeptNoise] = left.sigma;
}

}  // namespace intaglio
