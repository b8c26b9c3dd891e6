#include "core/guided_step.h"

#include <cassert>
#include <variant>

#include "core/elementwise.h"

namespace intaglio {

StepElements elements_of(const GuidedStep& step) {
  const auto check = [&](const Tensor& tensor) {
    assert(tensor.dtype() == DType::float32 && tensor.size() == step.x.size());
    assert(tensor.device() == step.x.device());
    return static_cast<float*>(const_cast<void*>(tensor.data()));
  };
  StepElements elements;
  elements.conditional = check(step.conditional);
  const Combine& combine = step.combine;
  if (combine.has_unconditional && !combine.unconditional_delta.reused)
    elements.unconditional = check(step.unconditional);
  if (combine.has_degraded && !combine.degraded_delta.reused)
    elements.degraded = check(step.degraded);
  elements.x = check(step.x);
  elements.denoised = check(step.denoised);
  elements.previous_denoised = check(step.previous_denoised);
  elements.previous_x = check(step.previous_x);
  if (step.newer_unconditional.defined())
    elements.unconditional_cache = {check(step.newer_unconditional),
                                    check(step.older_unconditional)};
  if (step.newer_degraded.defined())
    elements.degraded_cache = {check(step.newer_degraded), check(step.older_degraded)};
  assert(!combine.unconditional_delta.reused || elements.unconditional_cache.newer);
  assert(!combine.degraded_delta.reused || elements.degraded_cache.newer);
  return elements;
}

void run_on_host(const GuidedStep& step) {
  assert(step.x.device() == Device::cpu);
  const StepElements elements = elements_of(step);
  const auto size = static_cast<std::size_t>(step.x.size());
  std::visit(
      [&](const auto& update) {
        INTAGLIO_ELEMENTWISE
        for (std::size_t i = 0; i < size; ++i) {
          guided_element(elements, step.combine, step.to_denoised, update, i);
        }
      },
      step.update);
}

}  // namespace intaglio
