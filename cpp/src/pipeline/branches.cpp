#include "pipeline/branches.h"

#include <algorithm>
#include <cassert>

namespace intaglio {

TransformerSessions load_transformer(const Bundle& bundle, const Backend& backend) {
  TransformerSessions sessions;
  for (const auto& [name, graph] : bundle.transformer_graphs)
    sessions[name] = backend.load(bundle.folder, graph);
  return sessions;
}

Branches::Branches(const Bundle& bundle, const TransformerSessions& sessions,
                   const Request& request, const PromptEmbedding& positive,
                   const PromptEmbedding* negative)
    : bundle_(bundle), sessions_(sessions), request_(request), n_(request.images) {
  const Shape shape{2 * n_, bundle.latent.channels, request.rows, request.columns};
  latent_ = Tensor(shape, DType::float32);
  prediction_ = Tensor({3 * n_, shape[1], shape[2], shape[3]}, DType::float32);
  timestep_ = Tensor({2 * n_}, DType::float32);
  text_ = Tensor({2 * n_, positive.text.dim(1), positive.text.dim(2)}, DType::float32);
  pooled_ = Tensor({2 * n_, positive.pooled.dim(1)}, DType::float32);
  keep_ = Tensor({3 * n_, request.token_rows * request.token_columns}, DType::float32);
  std::ranges::fill(keep_.floats(), 1.0F);
  fill_text(positive, negative);
  const int steps = request.schedule.steps();
  for (int step = 0; step < steps; ++step) {
    const StepWeights weights = weights_at(request.guidance, step, steps);
    bind(weights.unconditional(), weights.degraded());
  }
}

void Branches::fill_text(const PromptEmbedding& positive, const PromptEmbedding* negative) {
  for (std::int64_t row = 0; row < 2 * n_; ++row) {
    const PromptEmbedding* prompt = row < n_ ? negative : &positive;
    if (!prompt) continue;
    std::ranges::copy(prompt->text.floats(), text_.rows(row, row + 1).floats().begin());
    std::ranges::copy(prompt->pooled.floats(), pooled_.rows(row, row + 1).floats().begin());
  }
}

void Branches::set_keep(float keep) {
  if (keep == keep_value_) return;
  keep_value_ = keep;
  for (std::int64_t row = 2 * n_; row < 3 * n_; ++row) {
    std::ranges::transform(
        request_.suppression, keep_.rows(row, row + 1).floats().begin(),
        [keep](float suppression) { return 1.0F - (1.0F - keep) * suppression; });
  }
}

std::vector<Binding> Branches::base_inputs(std::int64_t first, std::int64_t last) const {
  return {{"latent", latent_.rows(first, last)},
          {"timestep", timestep_.rows(first, last)},
          {"text", text_.rows(first, last)},
          {"pooled", pooled_.rows(first, last)}};
}

std::unique_ptr<BoundGraph> Branches::bind_forked(bool unconditional, bool degraded) const {
  const std::int64_t first = unconditional ? 0 : n_;
  const std::int64_t last = degraded ? 3 * n_ : 2 * n_;
  Tensor branch({last - first}, DType::int64);
  for (std::int64_t row = first; row < last; ++row) {
    // D_m continues its image's D_c.
    branch.int64s()[static_cast<std::size_t>(row - first)] =
        (row < 2 * n_ ? row : row - n_) - first;
  }
  auto inputs = base_inputs(first, 2 * n_);
  inputs.push_back({"mask", request_.mask});
  inputs.push_back({"ref", request_.ref});
  inputs.push_back({"branch", branch});
  inputs.push_back({"keep", keep_.rows(first, last)});
  return sessions_.at("forked")->bind(inputs, {{"prediction", prediction_.rows(first, last)}});
}

std::unique_ptr<BoundGraph> Branches::bind_base(bool unconditional) const {
  const std::int64_t first = unconditional ? 0 : n_;
  return sessions_.at("base")->bind(base_inputs(first, 2 * n_),
                                    {{"prediction", prediction_.rows(first, 2 * n_)}});
}

std::unique_ptr<BoundGraph> Branches::bind_degraded() const {
  auto inputs = base_inputs(n_, 2 * n_);
  inputs.push_back({"mask", request_.mask});
  inputs.push_back({"ref", request_.ref});
  inputs.push_back({"keep", keep_.rows(2 * n_, 3 * n_)});
  return sessions_.at("degraded")->bind(inputs, {{"prediction", prediction_.rows(2 * n_, 3 * n_)}});
}

std::size_t Branches::index(bool unconditional, bool degraded) const {
  const std::size_t forked = bundle_.layout == "forked" && degraded ? 2 : 0;
  return (unconditional ? 1 : 0) + forked;
}

void Branches::bind(bool unconditional, bool degraded) {
  const bool forked = bundle_.layout == "forked";
  auto& bound = bound_.at(index(unconditional, degraded));
  if (!bound) bound = forked ? bind_forked(unconditional, degraded) : bind_base(unconditional);
  if (degraded && !forked && !bound_degraded_) bound_degraded_ = bind_degraded();
}

Branches::Predictions Branches::run(std::span<const float> x, float timestep,
                                    const StepWeights& weights) {
  const auto rows = latent_.floats();
  assert(x.size() * 2 == rows.size());
  std::ranges::copy(x, rows.begin());
  std::ranges::copy(x, rows.begin() + static_cast<std::ptrdiff_t>(x.size()));
  std::ranges::fill(timestep_.floats(), timestep);
  const bool unconditional = weights.unconditional();
  const bool degraded = weights.degraded();
  if (degraded) set_keep(weights.keep);

  bound_.at(index(unconditional, degraded))->run();
  if (degraded && bundle_.layout == "dual") bound_degraded_->run();

  const std::int64_t base = n_ * (unconditional ? 2 : 1);
  forked_rows += base + (degraded ? n_ : 0);
  base_rows += base + (degraded && bundle_.layout == "dual" ? n_ : 0);
  Predictions predictions;
  predictions.conditional = prediction_.rows(n_, 2 * n_).floats();
  if (unconditional) predictions.unconditional = prediction_.rows(0, n_).floats();
  if (degraded) predictions.degraded = prediction_.rows(2 * n_, 3 * n_).floats();
  return predictions;
}

}  // namespace intaglio
