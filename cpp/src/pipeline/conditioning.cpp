#include "pipeline/conditioning.h"

#include <algorithm>
#include <variant>

namespace intaglio {

namespace {

// Rows of vectors at once: engines are built for as many (engines/profiles.py).
constexpr std::int64_t kRows = 64;

std::int64_t last_axis(const GraphTensor& tensor) {
  return std::get<std::int64_t>(tensor.axes.back());  // bundle/graph.cpp has seen that it is one
}

}  // namespace

Conditioning::Conditioning(const Bundle& bundle, const Session& session, const Request& request,
                           const PromptEmbeds& embeds, Stream& stream)
    : branches_(request.unconditional ? 2 : 1) {
  Prompts prompts;
  if (branches_ == 2) prompts.push_back(embeds.negative ? &*embeds.negative : nullptr);
  prompts.push_back(&embeds.positive);
  std::vector<float> timesteps;
  for (const Evaluation& evaluation : request.plan) {
    const float timestep = evaluation.point.timestep;
    if (places_.emplace(timestep, static_cast<std::int64_t>(timesteps.size())).second)
      timesteps.push_back(timestep);
  }

  const Graph& graph = *bundle.conditioning();
  const auto rows = static_cast<std::int64_t>(timesteps.size()) * branches_;
  const std::vector<Binding> given = vectors(bundle, request, prompts, timesteps, stream);
  const Tensor modulation =
      stream.allocate({rows, last_axis(graph.output("modulation"))}, DType::float32);
  std::vector<Binding> text, context;
  if (graph.takes("text")) {
    Shape shape = prompts.back()->text.shape();
    shape.front() = branches_;
    text.push_back({"text", stream.allocate(shape, DType::float32)});
    for (std::int64_t row = 0; row < branches_; ++row)
      stream.copy(prompts[static_cast<std::size_t>(row)]->text,
                  text.front().tensor.rows(row, row + 1));
    shape.back() = last_axis(graph.output("context"));
    context_ = stream.allocate(shape, DType::float32);
    context.push_back({"context", context_});
  }
  for (std::int64_t first = 0; first < rows; first += kRows) {
    const std::int64_t last = std::min(first + kRows, rows);
    std::vector<Binding> inputs = text, outputs = context;
    for (const Binding& vector : given)
      inputs.push_back({vector.role, vector.tensor.rows(first, last)});
    outputs.push_back({"modulation", modulation.rows(first, last)});
    session.bind(stream, inputs, outputs)->run();
  }
  for (std::int64_t row = 0; row < rows; ++row) rows_.push_back(modulation.rows(row, row + 1));
}

// Each timestep's branches one after the other.
std::vector<Binding> Conditioning::vectors(const Bundle& bundle, const Request& request,
                                           const Prompts& prompts,
                                           const std::vector<float>& timesteps,
                                           Stream& stream) const {
  const Graph& graph = *bundle.conditioning();
  const auto rows = static_cast<std::int64_t>(timesteps.size()) * branches_;
  Tensor timestep({rows}, DType::float32), label({rows}, DType::int64);
  for (std::int64_t row = 0; row < rows; ++row) {
    const bool unconditional = row % branches_ != branches_ - 1;
    const auto at = static_cast<std::size_t>(row);
    timestep.floats()[at] = timesteps[static_cast<std::size_t>(row / branches_)];
    if (bundle.classes)
      label.int64s()[at] = unconditional ? bundle.classes->null : request.class_label;
  }
  std::vector<Binding> made;
  const auto add = [&](const char* role, Shape shape, DType dtype) -> Tensor {
    shape.front() = rows;
    made.push_back({role, stream.allocate(shape, dtype)});
    return made.back().tensor;
  };
  stream.copy(timestep, add("timestep", {rows}, DType::float32));
  if (graph.takes("class")) stream.copy(label, add("class", {rows}, DType::int64));
  if (graph.takes("guidance"))
    stream.fill(add("guidance", {rows}, DType::float32), request.distilled_guidance);
  if (graph.takes("pooled")) {
    const Tensor pooled = add("pooled", prompts.back()->pooled.shape(), DType::float32);
    for (std::int64_t row = 0; row < rows; ++row)
      stream.copy(prompts[static_cast<std::size_t>(row % branches_)]->pooled,
                  pooled.rows(row, row + 1));
  }
  return made;
}

const Tensor& Conditioning::modulation(float timestep, bool unconditional) const {
  return rows_[static_cast<std::size_t>(places_.at(timestep) * branches_ + place(unconditional))];
}

Tensor Conditioning::context(bool unconditional) const {
  const std::int64_t row = place(unconditional);
  return context_.rows(row, row + 1);
}

}  // namespace intaglio
