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
  if (step.combine.has_unconditional) elements.unconditional = check(step.unconditional);
  if (step.combine.has_degraded) elements.degraded = check(step.degraded);
  elements.x = check(step.x);
  elements.denoised = check(step.denoised);
  elements.first = check(step.first);
  elements.second = check(step.second);
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
