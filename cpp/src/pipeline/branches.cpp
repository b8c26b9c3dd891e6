#include "pipeline/branches.h"

#include <algorithm>
#include <cassert>

#include "pipeline/packing.h"

namespace intaglio {

TransformerSessions load_transformer(const Bundle& bundle, const Backend& backend) {
  TransformerSessions sessions;
  for (const auto& [name, graph] : bundle.transformer_graphs)
    sessions[name] = backend.load(bundle.folder, graph);
  return sessions;
}

Branches::Branches(const Bundle& bundle, const TransformerSessions& sessions,
                   const Request& request, const PromptEmbeds& embeds)
    : bundle_(bundle), sessions_(sessions), request_(request), n_(request.images) {
  Shape shape = request.latent_shape;
  shape.front() = 2 * n_;
  latent_ = Tensor(shape, DType::float32);
  shape.front() = 3 * n_;
  prediction_ = Tensor(shape, DType::float32);
  timestep_ = Tensor({2 * n_}, DType::float32);
  keep_ = Tensor({3 * n_, request.token_rows * request.token_columns}, DType::float32);
  std::ranges::fill(keep_.floats(), 1.0F);
  fill_rows(embeds);
  const int steps = request.schedule.steps();
  for (int step = 0; step < steps; ++step) {
    const StepWeights weights = weights_at(request.guidance, step, steps);
    bind(weights.unconditional(), weights.degraded());
  }
}

void Branches::fill_rows(const PromptEmbeds& embeds) {
  const Graph& graph = bundle_.transformer();
  rows_ = {{"latent", latent_}, {"timestep", timestep_}};
  shared_ = {{"mask", request_.mask}, {"ref", request_.ref}};
  add_text("text", &PromptEmbedding::text, embeds);
  add_text("text_mask", &PromptEmbedding::text_mask, embeds);
  add_text("pooled", &PromptEmbedding::pooled, embeds);
  if (graph.takes("position"))
    shared_["position"] = token_positions(request_.token_rows, request_.token_columns);
  if (graph.takes("guidance")) {
    Tensor& guidance = rows_["guidance"] = Tensor({2 * n_}, DType::float32);
    std::ranges::fill(guidance.floats(), request_.distilled_guidance);
  }
  if (graph.takes("class")) {
    Tensor& label = rows_["class"] = Tensor({2 * n_}, DType::int64);
    std::ranges::fill(label.rows(0, n_).int64s(), bundle_.classes->null);
    std::ranges::fill(label.rows(n_, 2 * n_).int64s(), request_.class_label);
  }
}

void Branches::add_text(const char* role, Tensor PromptEmbedding::* part,
                        const PromptEmbeds& embeds) {
  if (!bundle_.transformer().takes(role)) return;
  const Tensor& positive = embeds.positive.*part;
  Shape shape = positive.shape();
  shape.front() = 2 * n_;
  Tensor& rows = rows_[role] = Tensor(shape, DType::float32);
  for (std::int64_t row = 0; row < 2 * n_; ++row) {
    if (row < n_ && !embeds.negative) continue;
    const Tensor& prompt = row < n_ ? *embeds.negative.*part : positive;
    std::ranges::copy(prompt.floats(), rows.rows(row, row + 1).floats().begin());
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

// Without keep and branch, whose rows the caller knows.
std::vector<Binding> Branches::inputs(const std::string& graph, std::int64_t first) const {
  std::vector<Binding> bindings;
  for (const GraphTensor& input : bundle_.transformer_graphs.at(graph).inputs) {
    if (const auto rows = rows_.find(input.role); rows != rows_.end()) {
      bindings.push_back({input.role, rows->second.rows(first, 2 * n_)});
    } else if (const auto shared = shared_.find(input.role); shared != shared_.end()) {
      bindings.push_back({input.role, shared->second});
    }
  }
  return bindings;
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
  auto bindings = inputs("forked", first);
  bindings.push_back({"branch", branch});
  bindings.push_back({"keep", keep_.rows(first, last)});
  return sessions_.at("forked")->bind(bindings, {{"prediction", prediction_.rows(first, last)}});
}

std::unique_ptr<BoundGraph> Branches::bind_base(bool unconditional) const {
  const std::int64_t first = unconditional ? 0 : n_;
  return sessions_.at("base")->bind(inputs("base", first),
                                    {{"prediction", prediction_.rows(first, 2 * n_)}});
}

std::unique_ptr<BoundGraph> Branches::bind_degraded() const {
  auto bindings = inputs("degraded", n_);
  bindings.push_back({"keep", keep_.rows(2 * n_, 3 * n_)});
  return sessions_.at("degraded")
      ->bind(bindings, {{"prediction", prediction_.rows(2 * n_, 3 * n_)}});
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
  const bool unconditional = weights.unconditional();
  if (unconditional) std::ranges::copy(x, rows.begin());
  std::ranges::copy(x, rows.begin() + static_cast<std::ptrdiff_t>(x.size()));
  std::ranges::fill(timestep_.floats(), timestep);
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
