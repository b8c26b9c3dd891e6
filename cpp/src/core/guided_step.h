// One evaluation's arithmetic in one pass: guidance, the clean data, and the sampler's update.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/arithmetic.h"
#include "intaglio/tensor.h"

namespace intaglio {

// All tensors are float32, of one size and on one device.
struct GuidedStep {
  Combine combine;
  ToDenoised to_denoised;
  Update update;
  Tensor conditional, unconditional, degraded;  // raw predictions; without memory where not run
  Tensor x;                                     // what the model saw, and then where the step ends
  Tensor denoised;                              // the clean data that the predictions mean
  Tensor first, second;                         // SamplerMemory's parts
  // KeptDelta's parts; without memory where no step of the run reuses them.
  Tensor newer_unconditional, older_unconditional, newer_degraded, older_degraded;
};

// The same as plain pointers, as kernels take them.
struct StepElements {
  const float* conditional = nullptr;
  const float* unconditional = nullptr;
  const float* degraded = nullptr;
  float* x = nullptr;
  float* denoised = nullptr;
  float* first = nullptr;
  float* second = nullptr;
  KeptDelta kept_unconditional, kept_degraded;
};

StepElements elements_of(const GuidedStep& step);

template <typename AnyUpdate>
inline void guided_element(const StepElements& e, const Combine& combine,
                                                const ToDenoised& to_denoised,
                                                const AnyUpdate& update, std::size_t i) {
  const float prediction =
      combine(e.conditional, e.unconditional, e.degraded, i, e.kept_unconditional, e.kept_degraded);
  const float denoised = to_denoised(e.x[i], prediction);
  SamplerMemory memory{e.first[i], e.second[i]};
  e.x[i] = update(e.x[i], denoised, memory);
  e.denoised[i] = denoised;
  e.first[i] = memory.first;
  e.second[i] = memory.second;
}

// On the processor, in host memory.
void run_on_host(const GuidedStep& step);

}  // namespace intaglio
