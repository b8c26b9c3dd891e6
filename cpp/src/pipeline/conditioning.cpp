#include "pipeline/conditioning.h"

#include <algorithm>
#include <variant>

namespace intaglio {

namespace {

// Rows of a part: engines are built for as many (engines/profiles.py). Even, so that the branches
// of a timestep are in one part.
constexpr std::int64_t kConditioningRows = 64;

std::int64_t last_axis(const GraphTensor& tensor) {
  return std::get<std::int64_t>(tensor.axes.back());  // bundle/graph.cpp has seen that it is one
}

}  // namespace

Conditioning::Conditioning(const Bundle& bundle, const Session& session, const Request& request,
                           const PromptEmbeds& embeds, Stream& stream)
    : stream_(stream), branches_(request.unconditional ? 2 : 1) {
  Prompts prompts;
  if (branches_ == 2) prompts.push_back(embeds.negative ? &*embeds.negative : nullptr);
  prompts.push_back(&embeds.positive);
  std::vector<float> rows;  // each timestep's branches one after the other
  for (const Evaluation& evaluation : request.plan) {
    const float timestep = evaluation.point.timestep;
    if (places_.emplace(timestep, static_cast<std::int64_t>(rows.size()) / branches_).second)
      rows.insert(rows.end(), static_cast<std::size_t>(branches_), timestep);
  }
  all_rows_ = static_cast<std::int64_t>(rows.size());
  rows_ = std::min(kConditioningRows, all_rows_);
  Tensor all({all_rows_}, DType::float32);
  std::ranges::copy(rows, all.floats().begin());
  for (std::int64_t part = 0; part * rows_ < all_rows_; ++part)
    timesteps_.push_back(all.rows(first_row(part), first_row(part) + rows_));

  const std::vector<Binding> given = inputs(bundle, request, prompts);
  bound_ =
      session.bind(stream, given, outputs(*bundle.conditioning(), prompts.back()->text.shape()));
  run(0);
}

Tensor Conditioning::add(std::vector<Binding>& bindings, const char* role, const Shape& shape,
                         DType dtype) {
  bindings.push_back({role, stream_.allocate(shape, dtype)});
  return bindings.back().tensor;
}

// All but the timesteps are the same in every part.
std::vector<Binding> Conditioning::inputs(const Bundle& bundle, const Request& request,
                                          const Prompts& prompts) {
  const Graph& graph = *bundle.conditioning();
  const auto prompt = [&](std::int64_t row) {
    return prompts[static_cast<std::size_t>(row % branches_)];
  };
  std::vector<Binding> made;
  timestep_ = add(made, "timestep", {rows_});
  if (graph.takes("class")) {
    Tensor label({rows_}, DType::int64);
    for (std::int64_t row = 0; row < rows_; ++row)
      label.int64s()[static_cast<std::size_t>(row)] =
          row % branches_ == branches_ - 1 ? std::get<ClassLabel>(request.condition).index : bundle.classes->null;
    stream_.copy(label, add(made, "class", {rows_}, DType::int64));
  }
  if (graph.takes("guidance"))
    stream_.fill(add(made, "guidance", {rows_}), request.distilled_guidance);
  if (graph.takes("pooled")) {
    const Tensor pooled = add(made, "pooled", {rows_, prompts.back()->pooled.dim(1)});
    for (std::int64_t row = 0; row < rows_; ++row)
      stream_.copy(prompt(row)->pooled, pooled.rows(row, row + 1));
  }
  if (graph.takes("text")) {
    Shape shape = prompts.back()->text.shape();
    shape.front() = branches_;
    const Tensor text = add(made, "text", shape);
    for (std::int64_t row = 0; row < branches_; ++row)
      stream_.copy(prompt(row)->text, text.rows(row, row + 1));
  }
  return made;
}

std::vector<Binding> Conditioning::outputs(const Graph& graph, const Shape& text) {
  std::vector<Binding> made;
  const Tensor modulation = add(made, "modulation", {rows_, last_axis(graph.output("modulation"))});
  for (std::int64_t row = 0; row < rows_; ++row)
    modulation_.push_back(modulation.rows(row, row + 1));
  if (graph.takes("text"))
    context_ = add(made, "context", {branches_, text.at(1), last_axis(graph.output("context"))});
  return made;
}

// All parts are of one length, so that the graph is bound once; the last begins in the one before.
std::int64_t Conditioning::first_row(std::int64_t part) const {
  return std::min(part * rows_, all_rows_ - rows_);
}

void Conditioning::run(std::int64_t part) {
  part_ = part;
  stream_.copy(timesteps_[static_cast<std::size_t>(part)], timestep_);
  bound_->run();
}

const Tensor& Conditioning::modulation(float timestep, bool unconditional) {
  const std::int64_t row = places_.at(timestep) * branches_ + place(unconditional);
  if (const std::int64_t part = row / rows_; part != part_) run(part);
  return modulation_[static_cast<std::size_t>(row - first_row(part_))];
}

Tensor Conditioning::context(bool unconditional) const {
  const std::int64_t row = place(unconditional);
  return context_.rows(row, row + 1);
}

}  // namespace intaglio
