#include "pipeline/precompute.h"

#include <algorithm>
#include <variant>

#include "backend/device_memory.h"

namespace intaglio {

namespace {

// Rows of a part, at most: engines are built for as many (engines/profiles.py). All branches of a
// timestep are in one part.
constexpr std::int64_t kConditioningRows = 64;

std::int64_t last_axis(const GraphTensor& tensor) {
  return std::get<std::int64_t>(tensor.axes.back());  // bundle/graph.cpp checks that it is one
}

}  // namespace

Precomputed::Precomputed(const Bundle& bundle, const Session& session, const Request& request,
                         const PromptEmbeddings& embeddings, Stream& stream, DeviceMemory* memory)
    : stream_(stream),
      memory_(memory),
      third_(request.third_branch()),
      branches_(1 + (request.unconditional ? 1 : 0) + (third_ ? 1 : 0)) {
  Prompts prompts;
  if (request.unconditional)
    prompts.push_back(embeddings.negative ? &*embeddings.negative : nullptr);
  if (request.transports()) prompts.push_back(&*embeddings.source);
  prompts.resize(static_cast<std::size_t>(branches_), &embeddings.positive);
  std::vector<float> rows;  // of each timestep, the branches one after the other
  for (const Evaluation& evaluation : request.plan) {
    const float timestep = evaluation.point.timestep;
    if (indices_.emplace(timestep, static_cast<std::int64_t>(rows.size()) / branches_).second)
      rows.insert(rows.end(), static_cast<std::size_t>(branches_), timestep);
  }
  for (std::uint32_t i = 0; request.skips_layers() && i < indices_.size(); ++i)
    gates_.push_back(gate_columns(bundle, request.slg_share
                                              ? drawn_layers(*request.slg_share, bundle.blocks, i)
                                              : request.slg_layers));
  all_rows_ = static_cast<std::int64_t>(rows.size());
  rows_ = std::min(kConditioningRows / branches_ * branches_, all_rows_);
  Tensor all({all_rows_}, DType::float32);
  std::ranges::copy(rows, all.floats().begin());
  for (std::int64_t part = 0; part * rows_ < all_rows_; ++part)
    timesteps_.push_back(all.rows(first_row(part), first_row(part) + rows_));

  const std::vector<Binding> given = inputs(bundle, request, prompts);
  bound_ =
      session.bind(given, outputs(*bundle.conditioning(), prompts.back()->text.shape(), memory));
  run(0);
}

Tensor Precomputed::add(std::vector<Binding>& bindings, Role role, const Shape& shape,
                        DType dtype) {
  bindings.push_back({role, stream_.allocate(shape, dtype)});
  return bindings.back().tensor;
}

// The inputs. All but the timesteps are the same in every part.
std::vector<Binding> Precomputed::inputs(const Bundle& bundle, const Request& request,
                                         const Prompts& prompts) {
  const Graph& graph = *bundle.conditioning();
  const auto prompt = [&](std::int64_t row) {
    return prompts[static_cast<std::size_t>(row % branches_)];
  };
  std::vector<Binding> made;
  timestep_ = add(made, Role::timestep, {rows_});
  if (graph.takes(Role::class_label)) {
    Tensor label({rows_}, DType::int64);
    for (std::int64_t row = 0; row < rows_; ++row)
      label.int64s()[static_cast<std::size_t>(row)] =
          request.unconditional && row % branches_ == 0
              ? bundle.classes->null
              : std::get<ClassLabel>(request.condition).index;
    stream_.copy(label, add(made, Role::class_label, {rows_}, DType::int64));
  }
  if (graph.takes(Role::guidance))
    stream_.fill(add(made, Role::guidance, {rows_}), request.distilled_guidance);
  if (graph.takes(Role::pooled)) {
    const Tensor pooled = add(made, Role::pooled, {rows_, prompts.back()->pooled.dim(1)});
    for (std::int64_t row = 0; row < rows_; ++row)
      stream_.copy(prompt(row)->pooled, pooled.rows(row, row + 1));
  }
  const auto add_prompts = [&](Role role, Tensor TextConditioning::* of) {
    Shape shape = (prompts.back()->*of).shape();
    shape.front() = branches_;
    const Tensor all = add(made, role, shape);
    for (std::int64_t row = 0; row < branches_; ++row)
      stream_.copy(prompt(row)->*of, all.rows(row, row + 1));
  };
  if (graph.takes(Role::text)) add_prompts(Role::text, &TextConditioning::text);
  if (graph.takes(Role::text_mask)) add_prompts(Role::text_mask, &TextConditioning::text_mask);
  return made;
}

std::vector<Binding> Precomputed::outputs(const Graph& graph, const Shape& text,
                                          DeviceMemory* memory) {
  std::vector<Binding> made;
  const Shape shape{rows_, last_axis(graph.output(Role::modulation))};
  if (memory) {
    modulation_ = memory->allocate(shape, DType::float32);
    made.push_back({Role::modulation, modulation_});
  } else {
    modulation_ = add(made, Role::modulation, shape);
    for (std::int64_t row = 0; row < rows_; ++row)
      modulation_rows_.push_back(modulation_.rows(row, row + 1));
  }
  if (graph.takes(Role::text))
    context_ =
        add(made, Role::context, {branches_, text.at(1), last_axis(graph.output(Role::context))});
  return made;
}

// All parts have one length, so that the graph is bound once; the last one begins inside the part
// before it.
std::int64_t Precomputed::first_row(std::int64_t part) const {
  return std::min(part * rows_, all_rows_ - rows_);
}

void Precomputed::run(std::int64_t part) {
  part_ = -1;  // until it is there
  stream_.copy(timesteps_[static_cast<std::size_t>(part)], timestep_);
  bound_->run();
  if (!gates_.empty()) close_gates(part);
  part_ = part;
}

// Sets the gates of D_m's rows to zero.
void Precomputed::close_gates(std::int64_t part) {
  Tensor host = memory_ ? memory_->download(modulation_) : modulation_;
  const std::int64_t width = host.dim(1);
  for (std::int64_t row = branch_index(Branch::degraded); row < rows_; row += branches_) {
    const auto timestep = static_cast<std::size_t>((first_row(part) + row) / branches_);
    for (const auto& [first, last] : gates_[timestep])
      std::ranges::fill(host.floats().subspan(static_cast<std::size_t>(row * width + first),
                                              static_cast<std::size_t>(last - first)),
                        0.0F);
  }
  if (memory_) memory_->copy(host, modulation_);
}

std::int64_t Precomputed::branch_index(Branch branch) const {
  if (branch == Branch::unconditional) return 0;
  return branches_ - (branch == Branch::degraded && third_ ? 2 : 1);
}

std::int64_t Precomputed::index(float timestep, Branch branch) const {
  return indices_.at(timestep) * branches_ + branch_index(branch);
}

const Tensor& Precomputed::part(float timestep) {
  if (const std::int64_t part = index(timestep, Branch::conditional) / rows_; part != part_)
    run(part);
  return modulation_;
}

std::int64_t Precomputed::row(float timestep, Branch branch) const {
  const std::int64_t row = index(timestep, branch);
  return row - first_row(row / rows_);
}

const Tensor& Precomputed::modulation(float timestep, Branch branch) {
  part(timestep);
  return modulation_rows_[static_cast<std::size_t>(row(timestep, branch))];
}

Tensor Precomputed::context(Branch branch) const {
  const std::int64_t row = branch_index(branch);
  return context_.rows(row, row + 1);
}

}  // namespace intaglio
