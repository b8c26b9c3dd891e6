// The arithmetic of one evaluation in one pass: guidance, the clean data, and the sampler's update.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/arithmetic.h"
#include "intaglio/tensor.h"

namespace intaglio {

// A picture that stays where a mask has nothing drawn. Without a mask no tensor has memory.
struct Kept {
  Tensor drawn;         // 1 where x is drawn, 0 where it is the picture
  Tensor clean, noise;  // the picture there is alpha clean + sigma noise
  NoiseLevel level = {};
};

// All tensors are float32, of one size and on one device. The first axis counts images.
struct GuidedStep {
  Combine combine;
  GuidedLine line;
  ToDenoised to_denoised;
  Update update;
  // The raw predictions. A branch that did not run may be without memory.
  Tensor conditional, unconditional, degraded;
  Tensor term_mask;  // [1, ...]: what D_m's term is multiplied by; without memory, 1
  Tensor x;          // what the model saw; afterwards, where the step ends
  Tensor denoised;   // the clean data that the predictions mean
  Tensor previous_denoised, previous_x;  // the parts of SamplerMemory
  Tensor older_denoised, noise;          // the same, without memory where the update has no use
  // The parts of each branch's DeltaCache, without memory where no step of the run reuses them.
  Tensor newer_unconditional, older_unconditional, newer_degraded, older_degraded;
  // The parts of GuidedCache, without memory where no step of the run is skipped.
  Tensor newer_guided, older_guided;
  Tensor momentum;         // of CfgRule, without memory where the rule has none
  Tensor previous_guided;  // D of the last evaluation, where Correction::prev has a weight
  // [images]: LineDistance of each, written where `line.compared`. It has memory where the cache
  // has.
  Tensor distance;
  Kept kept = {};  // `level` is that at which this evaluation leaves x
};

// The same as plain pointers.
struct StepElements {
  const float* conditional = nullptr;
  const float* unconditional = nullptr;
  const float* degraded = nullptr;
  float* x = nullptr;
  float* denoised = nullptr;
  float* previous_denoised = nullptr;
  float* previous_x = nullptr;
  float* older_denoised = nullptr;
  const float* noise = nullptr;
  float* momentum = nullptr;
  float* previous_guided = nullptr;
  DeltaCache unconditional_cache, degraded_cache;
  GuidedCache guided_cache;
};

StepElements elements_of(const GuidedStep& step);

inline float guided_prediction(const StepElements& e, const Combine& combine, std::size_t i) {
  return combine(e.conditional, e.unconditional, e.degraded, i, e.unconditional_cache,
                 e.degraded_cache);
}

// Moves x by the guided prediction of the element.
template <typename AnyUpdate>
inline void update_element(const StepElements& e, float prediction, const ToDenoised& to_denoised,
                           const AnyUpdate& update, std::size_t i) {
  const float denoised = to_denoised(e.x[i], prediction);
  SamplerMemory memory{.previous_denoised = e.previous_denoised[i], .previous_x = e.previous_x[i]};
  if constexpr (std::is_same_v<AnyUpdate, NoisyUpdate>) memory.noise = e.noise[i];
  if constexpr (std::is_same_v<AnyUpdate, UnipcUpdate>) memory.older_denoised = e.older_denoised[i];
  e.x[i] = update(e.x[i], denoised, memory);
  if constexpr (std::is_same_v<AnyUpdate, UnipcUpdate>) e.older_denoised[i] = memory.older_denoised;
  e.denoised[i] = denoised;
  e.previous_denoised[i] = memory.previous_denoised;
  e.previous_x[i] = memory.previous_x;
}

// Runs the step on the processor, in host memory.
void run_on_host(const GuidedStep& step);

}  // namespace intaglio
