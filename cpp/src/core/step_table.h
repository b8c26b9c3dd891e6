// The loop's arithmetic as numbers: what one evaluation needs is a row of a table, so that a device
// finds it in its own memory.
#pragma once

#include <cstddef>

#include "core/arithmetic.h"

namespace intaglio {

// The columns. Every update of x is a sum of tensors, and the weights of the sum are numbers that
// are known ahead.
enum StepColumn : std::size_t {
  kTimestep,
  kMaKeep,
  kUnconditionalRow,  // of the modulations, where they are precomputed
  kConditionalRow,
  kDegradedRow,
  // D = D_c + lambda (D_c - D_0) + w (D_c - D_m)
  kLambda,
  kW,
  // denoised = (x - sigma D) / alpha
  kSigma,
  kAlpha,
  // Of UnipcCorrector: the sum that takes the place of x in the next one, where the sampler has it.
  kCorrectedX,
  kCorrectedPreviousX,
  kCorrectedDenoised,
  kCorrectedPreviousDenoised,
  kCorrectedOlderDenoised,
  // x = a x + b denoised + c previous_denoised + d previous_x + e noise
  kX,
  kDenoised,
  kPreviousDenoised,
  kPreviousX,
  kNoise,
  // 1 where the sampler remembers this evaluation's denoised, or its x
  kKeepsDenoised,
  kKeepsX,
  // A branch's difference from D_c = fresh (D_c - branch) + newer * newer + older * older. Where it
  // is fresh, it goes into the cache.
  kUnconditionalFresh,
  kUnconditionalNewer,
  kUnconditionalOlder,
  kDegradedFresh,
  kDegradedNewer,
  kDegradedOlder,
  // Of CfgRule. APG's q = slope (D_c - D_0) + momentum * before becomes the momentum of the next
  // step where the last of these is 1.
  kEta,
  kNormThreshold,
  kRuleAlpha,
  kRescale,
  kNormalization,
  kUses,  // 0 where the whole prediction is zero, or else 1
  kSlope,
  kMomentum,
  kKeepsMomentum,
  // Of Correction. D becomes the previous one where the last of these is 1.
  kTag,
  kPrev,
  kKeepsGuided,
  // The guided prediction = runs D + (1 - runs) D', with D' = newer * newer + older * older on the
  // line. Where the model runs, D becomes the newer one, and the older one moves on unless both are
  // of one timestep.
  kRuns,
  kMovesOn,
  kLineNewer,
  kLineOlder,
  // Of NoiseLevel: outside a mask, x is this much of the picture and of noise afterwards.
  kKeptClean,
  kKeptNoise,
  kStepColumns
};

// What the columns from kLambda on say.
struct StepNumbers {
  Combine combine;
  GuidedLine line;
  ToDenoised to_denoised;
  Update update;
  NoiseLevel left = {};  // at which the evaluation leaves x
};

// Writes these columns into a row of kStepColumns numbers.
void write_step(const StepNumbers& numbers, float* row);

}  // namespace intaglio
