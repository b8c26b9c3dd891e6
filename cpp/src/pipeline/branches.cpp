#include "pipeline/branches.h"

#include <algorithm>
#include <cassert>

#include "core/stopwatch.h"
#include "intaglio/error.h"
#include "pipeline/packing.h"

namespace intaglio {

TransformerSessions load_transformer(const Bundle& bundle, const Backend& backend) {
  TransformerSessions sessions;
  for (const auto& [name, graph] : bundle.transformer_graphs)
    sessions[name] = backend.load(bundle.folder, graph);
  return sessions;
}

Branches::Branches(const Bundle& bundle, const TransformerSessions& sessions,
                   const Request& request, const PromptEmbeds& embeds, Stream& stream)
    : bundle_(bundle), sessions_(sessions), request_(request), stream_(stream), n_(request.images) {
  Shape shape = request.latent_shape;
  shape.front() = 2 * n_;
  latent_ = stream.allocate(shape, DType::float32);
  unconditional_latent_ = latent_.rows(0, n_);
  conditional_latent_ = latent_.rows(n_, 2 * n_);
  shape.front() = 3 * n_;
  prediction_ = stream.allocate(shape, DType::float32);
  suppression_ = on_stream(request.suppression);
  keep_ = stream.allocate({3 * n_, suppression_.size()}, DType::float32);
  degraded_keep_ = keep_.rows(2 * n_, 3 * n_);
  stream.fill(keep_, 1.0F);
  fill_rows(embeds);
  if (bundle.observed()) observe();
  for (const StepWeights& weights : request.weights)
    bind(weights.runs_unconditional(), weights.runs_degraded());
}

Tensor Branches::on_stream(const Tensor& host) {
  Tensor tensor = stream_.allocate(host.shape(), host.dtype());
  stream_.copy(host, tensor);
  return tensor;
}

void Branches::fill_rows(const PromptEmbeds& embeds) {
  const Graph& graph = bundle_.transformer();
  rows_ = {{"latent", latent_}};
  shared_ = {{"mask", on_stream(request_.mask)}, {"ref", on_stream(request_.ref)}};
  add_text("text_mask", &PromptEmbedding::text_mask, embeds);
  if (graph.takes("position"))
    shared_["position"] = on_stream(token_positions(request_.token_rows, request_.token_columns));
  if (bundle_.conditioning()) {
    conditioning_.emplace(bundle_, *sessions_.at("conditioning"), request_, embeds, stream_);
    fill_conditioned();
    return;
  }
  timestep_ = rows_["timestep"] = stream_.allocate({2 * n_}, DType::float32);
  add_text("text", &PromptEmbedding::text, embeds);
  add_text("pooled", &PromptEmbedding::pooled, embeds);
  if (graph.takes("guidance")) {
    rows_["guidance"] = stream_.allocate({2 * n_}, DType::float32);
    stream_.fill(rows_["guidance"], request_.distilled_guidance);
  }
  if (graph.takes("class")) {
    Tensor label({2 * n_}, DType::int64);
    std::ranges::fill(label.rows(0, n_).int64s(), bundle_.classes->null);
    std::ranges::fill(label.rows(n_, 2 * n_).int64s(), request_.class_label);
    rows_["class"] = on_stream(label);
  }
}

void Branches::fill_conditioned() {
  const Tensor row = conditioning_->modulation(request_.plan.front().point.timestep, false);
  const Tensor modulation = rows_["modulation"] =
      stream_.allocate({2 * n_, row.dim(1)}, DType::float32);
  for (std::int64_t i = 0; i < 2 * n_; ++i) modulation_.push_back(modulation.rows(i, i + 1));
  if (!bundle_.transformer().takes("context")) return;
  Shape shape = conditioning_->context(false).shape();
  shape.front() = 2 * n_;
  const Tensor rows = rows_["context"] = stream_.allocate(shape, DType::float32);
  for (std::int64_t i = request_.unconditional ? 0 : n_; i < 2 * n_; ++i)
    stream_.copy(conditioning_->context(i < n_), rows.rows(i, i + 1));
}

void Branches::set_timestep(float timestep, bool unconditional) {
  if (!conditioning_) {
    stream_.fill(timestep_, timestep);
    return;
  }
  for (std::int64_t i = unconditional ? 0 : n_; i < 2 * n_; ++i)
    stream_.copy(conditioning_->modulation(timestep, i < n_),
                 modulation_[static_cast<std::size_t>(i)]);
}

void Branches::add_text(const char* role, Tensor PromptEmbedding::* part,
                        const PromptEmbeds& embeds) {
  if (!bundle_.transformer().takes(role)) return;
  const Tensor& positive = embeds.positive.*part;
  Shape shape = positive.shape();
  shape.front() = 2 * n_;
  rows_[role] = stream_.allocate(shape, DType::float32);
  for (std::int64_t row = 0; row < 2 * n_; ++row) {
    if (row < n_ && !embeds.negative) continue;
    stream_.copy(row < n_ ? *embeds.negative.*part : positive, rows_[role].rows(row, row + 1));
  }
}

void Branches::observe() {
  const std::int64_t tokens = suppression_.size(), channels = bundle_.channels;
  for (int block = 0; block < bundle_.blocks; ++block) {
    const bool forks = bundle_.layout == "forked" && block > bundle_.massive_activations.block;
    const std::int64_t rows = (forks ? 3 : 2) * n_;
    const std::string k = std::to_string(block);
    told_["hidden_states_" + k] = stream_.allocate({rows, tokens, channels}, DType::float32);
    told_["gate_" + k] = stream_.allocate({rows, channels}, DType::float32);
  }
}

Tensor Branches::told(const std::string& output, int block) const {
  if (told_.empty()) {
    throw UsageError(bundle_.name + " is not observed and has no " + output +
                     " to read: export it again with --observe");
  }
  if (block < 0 || block >= bundle_.blocks) {
    throw UsageError("the transformer has no block " + std::to_string(block) +
                     ": its blocks are 0 to " + std::to_string(bundle_.blocks - 1));
  }
  const Tensor& tensor = told_.at(output + "_" + std::to_string(block));
  return tensor.rows(first_, std::min(last_, tensor.dim(0)));
}

void Branches::set_keep(float keep) {
  if (keep == keep_value_) return;
  keep_value_ = keep;
  stream_.fill_keep(degraded_keep_, suppression_, keep);
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

// Of the graph that every step runs.
std::vector<Binding> Branches::outputs(std::int64_t first, std::int64_t last) const {
  std::vector<Binding> bindings{{"prediction", prediction_.rows(first, last)}};
  for (const auto& [role, tensor] : told_)
    bindings.push_back({role, tensor.rows(first, std::min(last, tensor.dim(0)))});
  return bindings;
}

std::unique_ptr<BoundGraph> Branches::bind_forked(bool unconditional, bool degraded) {
  const std::int64_t first = unconditional ? 0 : n_;
  const std::int64_t last = degraded ? 3 * n_ : 2 * n_;
  Tensor branch({last - first}, DType::int64);
  for (std::int64_t row = first; row < last; ++row) {
    // D_m continues its image's D_c.
    branch.int64s()[static_cast<std::size_t>(row - first)] =
        (row < 2 * n_ ? row : row - n_) - first;
  }
  auto bindings = inputs("forked", first);
  bindings.push_back({"branch", on_stream(branch)});
  bindings.push_back({"keep", keep_.rows(first, last)});
  return sessions_.at("forked")->bind(stream_, bindings, outputs(first, last));
}

std::unique_ptr<BoundGraph> Branches::bind_base(bool unconditional) const {
  const std::int64_t first = unconditional ? 0 : n_;
  return sessions_.at("base")->bind(stream_, inputs("base", first), outputs(first, 2 * n_));
}

std::unique_ptr<BoundGraph> Branches::bind_degraded() const {
  auto bindings = inputs("degraded", n_);
  bindings.push_back({"keep", degraded_keep_});
  return sessions_.at("degraded")
      ->bind(stream_, bindings, {{"prediction", prediction_.rows(2 * n_, 3 * n_)}});
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

void Branches::run(float timestep, const StepWeights& weights) {
  const bool unconditional = weights.runs_unconditional();
  // Here and not where a step ends, since a callback may write into the latents.
  if (unconditional) stream_.copy(conditional_latent_, unconditional_latent_);
  set_timestep(timestep, unconditional);
  const bool degraded = weights.runs_degraded();
  if (degraded) set_keep(weights.keep);

  Stopwatch watch;
  bound_.at(index(unconditional, degraded))->run();
  const bool dual = bundle_.layout == "dual";
  if (degraded && dual) bound_degraded_->run();
  network_seconds += watch.lap();
  first_ = unconditional ? 0 : n_;
  last_ = degraded && !dual ? 3 * n_ : 2 * n_;

  const std::int64_t base = n_ * (unconditional ? 2 : 1);
  forked_rows += base + (degraded ? n_ : 0);
  base_rows += base + (degraded && dual ? n_ : 0);
}

}  // namespace intaglio
