#include "pipeline/branches.h"

#include <algorithm>
#include <cassert>

#include "core/stopwatch.h"
#include "intaglio/error.h"
#include "pipeline/packing.h"

namespace intaglio {

namespace {

BranchRows rows_of(std::int64_t images, const StepWeights& weights) {
  return {weights.runs_unconditional() ? images : 0, images, weights.runs_degraded() ? images : 0};
}

}  // namespace

TransformerSessions load_transformer(const Bundle& bundle, const Backend& backend) {
  TransformerSessions sessions;
  for (const auto& [name, graph] : bundle.transformer_graphs)
    sessions[name] = backend.load(bundle.folder, graph);
  return sessions;
}

Branches::Branches(const Bundle& bundle, const TransformerSessions& sessions, Denoising& like,
                   std::int64_t images, Stream& stream)
    : bundle_(bundle),
      sessions_(sessions),
      stream_(stream),
      images_(images),
      fork_(2 * images),
      forked_(bundle.layout == "forked"),
      filled_(static_cast<std::size_t>(2 * images)),
      kept_(static_cast<std::size_t>(images)) {
  const auto allocate = [&](std::int64_t rows, Shape shape, DType dtype = DType::float32) {
    shape.front() = rows;
    return stream_.allocate(shape, dtype);
  };
  const Request& shared = *like.request();
  latent_ = RowViews(allocate(fork_, shared.latent_shape));
  prediction_ = RowViews(allocate(3 * images, shared.latent_shape));
  keep_ = RowViews(stream.allocate({3 * images, like.suppression().size()}, DType::float32));
  stream.fill(keep_.whole(), 1.0F);
  rows_ = {{"latent", latent_.whole()}};
  if (const Tensor* modulation = like.modulation(false)) {
    modulation_ = RowViews(allocate(fork_, modulation->shape()));
    rows_["modulation"] = modulation_.whole();
  } else {
    timestep_ = RowViews(stream.allocate({fork_}, DType::float32));
    rows_["timestep"] = timestep_.whole();
  }
  for (const auto& [role, row] : like.row(false))
    rows_[role] = allocate(fork_, row.shape(), row.dtype());
  shared_ = {{"mask", on_stream(shared.channel_mask)}, {"ref", on_stream(shared.ref)}};
  if (bundle.transformer().takes("position"))
    shared_["position"] = on_stream(token_positions(shared.token_rows, shared.token_columns));
  if (bundle.observed()) observe();
  order_.reserve(static_cast<std::size_t>(images));
}

Tensor Branches::on_stream(const Tensor& host) {
  Tensor tensor = stream_.allocate(host.shape(), host.dtype());
  stream_.copy(host, tensor);
  return tensor;
}

void Branches::observe() {
  const std::int64_t tokens = keep_.whole().dim(1), channels = bundle_.hidden_size;
  for (int block = 0; block < bundle_.blocks; ++block) {
    const bool forks = forked_ && block > bundle_.massive_activations.block;
    const std::int64_t rows = forks ? 3 * images_ : fork_;
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

// Of D_0 or D_c, from that row on.
void Branches::place(Denoising& member, bool unconditional, std::int64_t first) {
  const std::int64_t last = first + member.images();
  // Here and not where a step ends, since a callback may write into the latents.
  stream_.copy(member.guided.x, latent_.at(first, last));
  if (const Tensor* modulation = member.modulation(unconditional)) {
    for (std::int64_t row = first; row < last; ++row)
      stream_.copy(*modulation, modulation_.at(row, row + 1));
  } else {
    stream_.fill(timestep_.at(first, last), member.next().point.timestep);
  }
  (unconditional ? member.guided.unconditional : member.guided.conditional) =
      prediction_.at(first, last);
  const Filled mine{member.id(), unconditional};
  for (std::int64_t row = first; row < last; ++row) {
    Filled& filled = filled_[static_cast<std::size_t>(row)];
    if (filled == mine) continue;
    for (const auto& [role, tensor] : member.row(unconditional))
      stream_.copy(tensor, rows_.at(role).rows(row, row + 1));
    filled = mine;
  }
}

void Branches::place_degraded(Denoising& member, std::int64_t first) {
  const std::int64_t last = first + member.images();
  member.guided.degraded = prediction_.at(first, last);
  const Kept mine{member.id(), member.weights().keep};
  const auto kept = std::span(kept_).subspan(static_cast<std::size_t>(first - fork_),
                                             static_cast<std::size_t>(member.images()));
  if (std::ranges::all_of(kept, [&](const Kept& row) { return row == mine; })) return;
  stream_.fill_keep(keep_.at(first, last), member.suppression(), mine.keep);
  std::ranges::fill(kept, mine);
}

void Branches::prepare(Denoising& member) {
  const std::int64_t images = member.images();
  if (member.request()->unconditional) place(member, true, fork_ - 2 * images);
  place(member, false, fork_ - images);
  place_degraded(member, fork_);
  for (const StepWeights& weights : member.request()->weights) bind(rows_of(images, weights));
}

// Gives every member its rows, and fills them.
BranchRows Branches::arrange(std::span<Denoising* const> members) {
  order_.clear();
  for (const bool degraded : {false, true}) {
    for (Denoising* member : members)
      if (member->weights().runs_degraded() == degraded) order_.push_back(member);
  }
  BranchRows all;
  for (const Denoising* member : order_) {
    const BranchRows rows = rows_of(member->images(), member->weights());
    all.unconditional += rows.unconditional;
    all.conditional += rows.conditional;
    all.degraded += rows.degraded;
  }
  assert(all.conditional <= images_);
  std::int64_t conditional = fork_ - all.conditional, degraded = fork_;
  std::int64_t unconditional = conditional - all.unconditional;
  for (Denoising* member : order_) {
    const BranchRows rows = rows_of(member->images(), member->weights());
    if (rows.unconditional > 0) place(*member, true, unconditional);
    place(*member, false, conditional);
    if (rows.degraded > 0) place_degraded(*member, degraded);
    unconditional += rows.unconditional;
    conditional += rows.conditional;
    degraded += rows.degraded;
  }
  return all;
}

// Without keep and branch, whose rows the caller knows.
std::vector<Binding> Branches::inputs(const std::string& graph, std::int64_t first) const {
  std::vector<Binding> bindings;
  for (const GraphTensor& input : bundle_.transformer_graphs.at(graph).inputs) {
    if (const auto rows = rows_.find(input.role); rows != rows_.end()) {
      bindings.push_back({input.role, rows->second.rows(first, fork_)});
    } else if (const auto shared = shared_.find(input.role); shared != shared_.end()) {
      bindings.push_back({input.role, shared->second});
    }
  }
  return bindings;
}

// Of the graph that every step runs.
std::vector<Binding> Branches::outputs(std::int64_t first, std::int64_t last) const {
  std::vector<Binding> bindings{{"prediction", prediction_.whole().rows(first, last)}};
  for (const auto& [role, tensor] : told_)
    bindings.push_back({role, tensor.rows(first, std::min(last, tensor.dim(0)))});
  return bindings;
}

std::unique_ptr<BoundGraph> Branches::bind_forked(const BranchRows& rows) {
  const std::int64_t base = rows.unconditional + rows.conditional;
  const std::int64_t first = fork_ - base, last = fork_ + rows.degraded;
  Tensor branch({last - first}, DType::int64);
  for (std::int64_t row = 0; row < last - first; ++row) {
    // D_m continues its image's D_c, and these are the last.
    branch.int64s()[static_cast<std::size_t>(row)] = row < base ? row : row - rows.degraded;
  }
  auto bindings = inputs("forked", first);
  bindings.push_back({"branch", on_stream(branch)});
  bindings.push_back({"keep", keep_.whole().rows(first, last)});
  return sessions_.at("forked")->bind(stream_, bindings, outputs(first, last));
}

std::unique_ptr<BoundGraph> Branches::bind_base(const BranchRows& rows) const {
  const std::int64_t first = fork_ - rows.unconditional - rows.conditional;
  return sessions_.at("base")->bind(stream_, inputs("base", first), outputs(first, fork_));
}

std::unique_ptr<BoundGraph> Branches::bind_degraded(std::int64_t rows) const {
  auto bindings = inputs("degraded", fork_ - rows);
  bindings.push_back({"keep", keep_.whole().rows(fork_, fork_ + rows)});
  return sessions_.at("degraded")
      ->bind(stream_, bindings, {{"prediction", prediction_.whole().rows(fork_, fork_ + rows)}});
}

void Branches::bind(const BranchRows& rows) {
  if (forked_) {
    auto& bound = bound_[rows];
    if (!bound) bound = bind_forked(rows);
    return;
  }
  auto& base = bound_[{rows.unconditional, rows.conditional, 0}];
  if (!base) base = bind_base(rows);
  if (rows.degraded == 0) return;
  auto& degraded = bound_[{0, 0, rows.degraded}];
  if (!degraded) degraded = bind_degraded(rows.degraded);
}

void Branches::run(std::span<Denoising* const> members) {
  const BranchRows rows = arrange(members);
  bind(rows);
  Stopwatch watch;
  if (forked_) {
    bound_.at(rows)->run();
  } else {
    bound_.at({rows.unconditional, rows.conditional, 0})->run();
    if (rows.degraded > 0) bound_.at({0, 0, rows.degraded})->run();
  }
  network_seconds += watch.lap();
  first_ = fork_ - rows.unconditional - rows.conditional;
  last_ = forked_ ? fork_ + rows.degraded : fork_;
}

}  // namespace intaglio
