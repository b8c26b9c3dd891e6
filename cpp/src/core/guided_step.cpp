#include "core/guided_step.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <variant>

#include "core/elementwise.h"
#include "core/rule_weights.h"

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
  if (step.older_denoised.defined()) elements.older_denoised = check(step.older_denoised);
  if (step.noise.defined()) elements.noise = check(step.noise);
  assert(elements.noise || !std::holds_alternative<NoisyUpdate>(step.update));
  assert(elements.older_denoised || !std::holds_alternative<UnipcUpdate>(step.update));
  if (step.momentum.defined()) elements.momentum = check(step.momentum);
  if (step.previous_guided.defined()) elements.previous_guided = check(step.previous_guided);
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

// The mean square of an image's values less the square of their mean.
class Variance {
 public:
  void add(float value) {
    sum_ += static_cast<double>(value);
    squares_ += static_cast<double>(value) * static_cast<double>(value);
    ++count_;
  }
  double value() const {
    const double mean = sum_ / count_;
    return std::max(squares_ / count_ - mean * mean, 0.0);
  }
  double squares() const { return squares_; }

 private:
  double sum_ = 0, squares_ = 0, count_ = 0;
};

// A rule that needs sums over an image, for the image whose elements are [begin, end).
class ImageRule {
 public:
  ImageRule(const GuidedStep& step, const StepElements& e, std::size_t begin, std::size_t end)
      : combine_(step.combine),
        to_denoised_(step.to_denoised),
        e_(e),
        begin_(begin),
        end_(end),
        denoised_(combine_.rule.kind == CfgRule::Kind::apg),
        slope_(denoised_ ? to_denoised_.slope() : 1.0F) {}

  // Puts D into e.denoised.
  void run() const {
    const auto [a, b] = weights();
    Variance conditional, guided;
    for (std::size_t i = begin_; i < end_; ++i) {
      const double change = a * static_cast<double>(p(i)) + b * static_cast<double>(e_.denoised[i]);
      e_.denoised[i] = e_.conditional[i] + static_cast<float>(change / static_cast<double>(slope_));
      conditional.add(e_.conditional[i]);
      guided.add(e_.denoised[i]);
    }
    const auto factor = static_cast<float>(scale(conditional, guided));
    for (std::size_t i = begin_; i < end_; ++i) {
      const float scaled = factor * e_.denoised[i];
      e_.denoised[i] =
          combine_.with_dg(scaled, e_.conditional[i], e_.degraded, i, e_.degraded_cache);
    }
  }

 private:
  // What D is multiplied by.
  double scale(const Variance& conditional, const Variance& guided) const {
    const double rescale = combine_.rule.rescale, limit = combine_.rule.normalization;
    const double factor =
        rescale > 0 ? rescale_factor(rescale, conditional.value(), guided.value()) : 1.0;
    if (limit == 0) return factor;
    return factor * norm_factor(limit, conditional.squares(), factor * factor * guided.squares());
  }
  // The vectors of RuleSums; q goes into e.denoised.
  float p(std::size_t i) const {
    return denoised_ ? to_denoised_(e_.x[i], e_.conditional[i]) : e_.conditional[i];
  }
  float q(std::size_t i) const {
    const float delta = combine_.unconditional_delta(e_.conditional[i], e_.unconditional,
                                                     e_.unconditional_cache, i);
    if (!e_.momentum) return slope_ * delta;
    const auto momentum = static_cast<float>(combine_.rule.momentum);
    return e_.momentum[i] = slope_ * delta + momentum * e_.momentum[i];
  }
  RuleWeights<double> weights() const {
    RuleSums<double> sums{};
    for (std::size_t i = begin_; i < end_; ++i) {
      const double from = static_cast<double>(p(i));
      const double to = static_cast<double>(e_.denoised[i] = q(i));
      sums.pp += from * from;
      sums.pq += from * to;
      sums.qq += to * to;
    }
    const CfgRule& rule = combine_.rule;
    const RuleNumbers<double> numbers{.lambda = static_cast<double>(combine_.lambda),
                                      .eta = rule.eta,
                                      .norm_threshold = norm_limit(rule),
                                      .alpha = rule.alpha};
    return rule_weights(rule.kind, numbers, sums);
  }

  const Combine& combine_;
  const ToDenoised& to_denoised_;
  const StepElements& e_;
  std::size_t begin_, end_;
  bool denoised_;  // whether the rule works on the clean data
  float slope_;    // of p over the prediction
};

// Applies Correction to the predictions in `denoised`.
void correct_images(const GuidedStep& step, const StepElements& e) {
  const auto images = static_cast<std::size_t>(step.x.dim(0));
  const std::size_t size = static_cast<std::size_t>(step.x.size()) / images;
  const auto prev = static_cast<float>(step.combine.correction.prev);
  const double tag = step.combine.correction.tag;
  for (std::size_t image = 0; image < images; ++image) {
    double dx = 0, xx = 0;
    for (std::size_t i = image * size; i < (image + 1) * size; ++i) {
      const float guided = e.denoised[i];
      if (prev != 0) e.denoised[i] += prev * (guided - e.previous_guided[i]);
      if (e.previous_guided) e.previous_guided[i] = guided;
      dx += static_cast<double>(e.denoised[i]) * static_cast<double>(e.x[i]);
      xx += static_cast<double>(e.x[i]) * static_cast<double>(e.x[i]);
    }
    if (tag == 1) continue;
    const double weight = tag_weight(tag, dx, xx);
    for (std::size_t i = image * size; i < (image + 1) * size; ++i)
      e.denoised[i] = static_cast<float>(tag * static_cast<double>(e.denoised[i]) +
                                         weight * static_cast<double>(e.x[i]));
  }
}

// Whether D has to be known of a whole token or image before x moves.
bool needs_images(const GuidedStep& step) {
  const Combine& combine = step.combine;
  return combine.scales_tokens() || combine.needs_sums() || combine.correction.any() ||
         step.previous_guided.defined();
}

// Puts D into `denoised`, which the update writes later.
void combine_images(const GuidedStep& step, const StepElements& elements) {
  const auto all = static_cast<std::size_t>(step.x.size());
  const auto images = static_cast<std::size_t>(step.x.dim(0));
  if (step.combine.scales_tokens()) {
    combine_tokens(elements, step.combine, all);
  } else if (step.combine.needs_sums()) {
    for (std::size_t image = 0; image < images; ++image)
      ImageRule(step, elements, image * all / images, (image + 1) * all / images).run();
  } else {
    for (std::size_t i = 0; i < all; ++i)
      elements.denoised[i] = guided_prediction(elements, step.combine, i);
  }
  if (step.combine.correction.any() || step.previous_guided.defined())
    correct_images(step, elements);
}

// Brings D_m to D_c where its term is masked, so that the term is zero there for every rule.
void mask_term(const GuidedStep& step, const StepElements& e) {
  if (!step.term_mask.defined() || !e.degraded) return;
  const auto mask = Tensor(step.term_mask).floats(), degraded = Tensor(step.degraded).floats();
  for (std::size_t i = 0; i < degraded.size(); ++i) {
    const float c = e.conditional[i];
    degraded[i] = c - mask[i % mask.size()] * (c - degraded[i]);
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

// Takes back what the step did to the picture outside the mask.
void put_back(const GuidedStep& step) {
  const Kept& kept = step.kept;
  const auto drawn = kept.drawn.floats(), clean = kept.clean.floats(), noise = kept.noise.floats();
  const auto x = Tensor(step.x).floats(), denoised = Tensor(step.denoised).floats();
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    if (drawn[i] != 0) continue;
    x[i] = kept.level.alpha * clean[i] + kept.level.sigma * noise[i];
    denoised[i] = clean[i];
  }
}

}  // namespace

void run_on_host(const GuidedStep& step) {
  assert(step.x.device() == Device::cpu);
  const StepElements elements = elements_of(step);
  mask_term(step, elements);
  if (step.line.skipped) {
    std::visit([&](const auto& update) { run_skipped(step, elements, update); }, step.update);
  } else if (step.combine.zero) {
    run_computed(step, elements, [](std::size_t) { return 0.0F; });
  } else if (needs_images(step)) {
    combine_images(step, elements);
    run_computed(step, elements, [&](std::size_t i) { return elements.denoised[i]; });
  } else {
    run_computed(step, elements,
                 [&](std::size_t i) { return guided_prediction(elements, step.combine, i); });
  }
  if (step.kept.drawn.defined()) put_back(step);
}

}  // namespace intaglio
