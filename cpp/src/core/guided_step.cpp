#include "core/guided_step.h"

#include <cassert>
#include <cmath>
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
  const Combine& combine = step.combine;
  const bool runs = !step.line.skipped;
  if (runs) elements.conditional = check(step.conditional);
  if (runs && combine.has_unconditional && !combine.unconditional_delta.reused)
    elements.unconditional = check(step.unconditional);
  if (runs && combine.has_degraded && !combine.degraded_delta.reused)
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
  if (step.newer_guided.defined())
    elements.guided_cache = {check(step.newer_guided), check(step.older_guided)};
  assert(runs || elements.guided_cache.newer);
  assert(!combine.unconditional_delta.reused || elements.unconditional_cache.newer);
  assert(!combine.degraded_delta.reused || elements.degraded_cache.newer);
  return elements;
}

namespace {

template <typename AnyUpdate>
void run_skipped(const GuidedStep& step, const StepElements& elements, const AnyUpdate& update) {
  const auto size = static_cast<std::size_t>(step.x.size());
  INTAGLIO_ELEMENTWISE
  for (std::size_t i = 0; i < size; ++i)
    update_element(elements, step.line.at(elements.guided_cache, i), step.to_denoised, update, i);
}

template <typename AnyUpdate, typename Prediction>
void run_combined(const GuidedStep& step, const StepElements& elements, const AnyUpdate& update,
                  const Prediction& prediction) {
  const auto size = static_cast<std::size_t>(step.x.size());
  INTAGLIO_ELEMENTWISE
  for (std::size_t i = 0; i < size; ++i)
    update_element(elements, prediction(i), step.to_denoised, update, i);
}

// The same, and keeps the predictions for steps that are skipped.
template <typename AnyUpdate, typename Prediction>
void run_kept(const GuidedStep& step, const StepElements& elements, const AnyUpdate& update,
              const Prediction& prediction) {
  const auto distances = Tensor(step.distance).floats();
  const std::size_t size = static_cast<std::size_t>(step.x.size()) / distances.size();
  for (std::size_t image = 0; image < distances.size(); ++image) {
    LineDistance distance;
    for (std::size_t i = image * size; i < (image + 1) * size; ++i) {
      const float guided = prediction(i);
      distance.add(guided, step.line.at(elements.guided_cache, i));
      step.line.keep(guided, elements.guided_cache, i);
      update_element(elements, guided, step.to_denoised, update, i);
    }
    if (step.line.compared) distances[image] = distance.value();
  }
}

// Puts guided predictions whose tokens are scaled into `denoised`, which the update writes later.
void combine_tokens(const StepElements& e, const Combine& combine, std::size_t size) {
  for (std::size_t begin = 0; begin < size; begin += combine.token_size) {
    const std::size_t end = begin + combine.token_size;
    double conditional = 0, guided = 0;  // sums of squares
    for (std::size_t i = begin; i < end; ++i) {
      const float c = e.conditional[i];
      const float cfg = combine.with_cfg(c, e.unconditional, i, e.unconditional_cache);
      conditional += static_cast<double>(c) * static_cast<double>(c);
      guided += static_cast<double>(cfg) * static_cast<double>(cfg);
      e.denoised[i] = cfg;
    }
    const float scale = guided > 0 ? static_cast<float>(std::sqrt(conditional / guided)) : 1.0F;
    for (std::size_t i = begin; i < end; ++i)
      e.denoised[i] =
          combine.with_dg(scale * e.denoised[i], e.conditional[i], e.degraded, i, e.degraded_cache);
  }
}

template <typename Prediction>
void run_computed(const GuidedStep& step, const StepElements& elements,
                  const Prediction& prediction) {
  std::visit(
      [&](const auto& update) {
        if (elements.guided_cache.newer)
          run_kept(step, elements, update, prediction);
        else
          run_combined(step, elements, update, prediction);
      },
      step.update);
}

}  // namespace

void run_on_host(const GuidedStep& step) {
  assert(step.x.device() == Device::cpu);
  const StepElements elements = elements_of(step);
  if (step.line.skipped) {
    std::visit([&](const auto& update) { run_skipped(step, elements, update); }, step.update);
  } else if (step.combine.scales_tokens()) {
    combine_tokens(elements, step.combine, static_cast<std::size_t>(step.x.size()));
    run_computed(step, elements, [&](std::size_t i) { return elements.denoised[i]; });
  } else {
    run_computed(step, elements,
                 [&](std::size_t i) { return guided_prediction(elements, step.combine, i); });
  }
}

}  // namespace intaglio
