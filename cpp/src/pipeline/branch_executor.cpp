#include "pipeline/branch_executor.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

#include "core/stopwatch.h"
#include "intaglio/error.h"
#include "pipeline/packing.h"

namespace intaglio {

namespace {

BranchRows rows_of(const DenoisingState& state, const StepWeights& weights) {
  const std::int64_t images = state.images();
  const bool third = weights.runs_degraded() || weights.runs_source();
  const std::int64_t degraded = third ? images : 0;
  return {.third = state.third_branch() ? degraded : 0,
          .unconditional = weights.runs_unconditional() ? images : 0,
          .conditional = images,
          .degraded = state.third_branch() ? 0 : degraded};
}

}  // namespace

SharedInputs shared_inputs(DenoisingState& state) {
  const Request& request = *state.request();
  SharedInputs shared{.latent = request.latent_shape,
                      .token_rows = request.token_rows,
                      .token_columns = request.token_columns,
                      .reference_grids = request.reference_grids,
                      .channel_mask = request.channel_mask,
                      .ref = request.ref,
                      .rows = {},
                      .modulation = 0,
                      .third_branch = state.third_branch()};
  shared.latent.front() = 1;
  for (const auto& [role, row] : state.row(Branch::conditional))
    shared.rows[role] = {.shape = row.shape(), .dtype = row.dtype()};
  if (const Tensor* modulation = state.modulation_part()) shared.modulation = modulation->dim(1);
  return shared;
}

std::map<Role, Tensor> inputs_of_all_rows(const Bundle& bundle, const SharedInputs& shared) {
  std::map<Role, Tensor> inputs{{Role::mask, shared.channel_mask}, {Role::ref, shared.ref}};
  if (bundle.transformer().takes(Role::position))
    inputs[Role::position] = token_positions(shared.token_rows, shared.token_columns);
  if (bundle.transformer().takes(Role::reference_position))
    inputs[Role::reference_position] = reference_positions(bundle, shared.reference_grids);
  return inputs;
}

BranchExecutor::BranchExecutor(const Bundle& bundle, const TransformerSessions& sessions,
                               const SharedInputs& shared, std::int64_t images, Stream& stream)
    : bundle_(bundle),
      stream_(stream),
      owners_(static_cast<std::size_t>((shared.third_branch ? 3 : 2) * images)),
      keeps_(owners_.size() + static_cast<std::size_t>(images)) {
  const auto allocate = [&](std::int64_t rows, Shape shape, DType dtype = DType::float32) {
    shape.front() = rows;
    return stream_.allocate(shape, dtype);
  };
  buffers_.images = images;
  if (shared.third_branch) buffers_.base_branches = 3;
  const std::int64_t fork = buffers_.fork();
  const std::int64_t tokens = shared.token_rows * shared.token_columns;
  buffers_.latent = RowViews(allocate(fork, shared.latent));
  buffers_.prediction = RowViews(allocate(fork + images, shared.latent));
  buffers_.ma_keep = RowViews(stream.allocate({fork + images, tokens}, DType::float32));
  stream.fill(buffers_.ma_keep.whole(), 1.0F);
  if (bundle.transformer().takes(Role::source)) {
    buffers_.source = stream.allocate({fork + images, tokens}, DType::int64);
    std::ranges::fill(buffers_.source.int64s(), 0);
  }
  buffers_.rows[Role::latent] = buffers_.latent.whole();
  if (shared.modulation > 0) {
    buffers_.modulation = RowViews(stream.allocate({fork, shared.modulation}, DType::float32));
    buffers_.rows[Role::modulation] = buffers_.modulation.whole();
  } else {
    buffers_.timestep = RowViews(stream.allocate({fork}, DType::float32));
    buffers_.rows[Role::timestep] = buffers_.timestep.whole();
  }
  for (const auto& [role, size] : shared.rows)
    buffers_.rows[role] = allocate(fork, size.shape, size.dtype);
  for (const auto& [role, tensor] : inputs_of_all_rows(bundle, shared))
    buffers_.shared[role] = on_stream(tensor);
  if (bundle.transformer().takes(Role::anchor))
    buffers_.rows[Role::anchor] = anchor_ = stream.allocate({fork}, DType::int64);
  if (bundle.observed()) allocate_observed();
  graphs_ = make_layout_graphs(bundle, sessions, buffers_, stream);
  ordered_.reserve(static_cast<std::size_t>(images));
}

Tensor BranchExecutor::on_stream(const Tensor& host) {
  Tensor tensor = stream_.allocate(host.shape(), host.dtype());
  stream_.copy(host, tensor);
  return tensor;
}

void BranchExecutor::allocate_observed() {
  const std::int64_t tokens = buffers_.ma_keep.whole().dim(1), channels = bundle_.hidden_size;
  for (int block = 0; block < bundle_.blocks; ++block) {
    const bool forked =
        bundle_.layout == Layout::forked && block > bundle_.massive_activations.block;
    const std::int64_t rows = buffers_.fork() + (forked ? buffers_.images : 0);
    buffers_.observed[{Role::hidden_states, block}] =
        stream_.allocate({rows, tokens, channels}, DType::float32);
    buffers_.observed[{Role::gate, block}] = stream_.allocate({rows, channels}, DType::float32);
  }
}

void BranchExecutor::add(DenoisingState& state, const LoopStart& start, bool alone) {
  // The rows of a request that runs alone never move: x can be its rows of D_c, and everything is
  // filled and bound ahead.
  if (alone) {
    const std::int64_t fork = buffers_.fork();
    state.begin(buffers_.latent.whole().rows(fork - buffers_.images, fork), start);
    prepare(state);
  } else {
    state.begin(stream_.allocate(state.request()->latent_shape, DType::float32), start);
  }
}

void BranchExecutor::step(DenoisingState& state) {
  state.prepare_step();
  stream_.step(state.guided);
  const auto distances = std::as_const(state.guided.distance).floats();
  state.advance(state.measures_distance() ? std::ranges::max(distances) : 0);
}

std::function<Tensor()> BranchExecutor::denoised(const DenoisingState& state) {
  const Tensor& denoised = state.guided.denoised;
  Tensor copy(denoised.shape(), denoised.dtype());
  stream_.copy(denoised, copy);
  return [copy] { return copy; };
}

Tensor BranchExecutor::observed(Role::Kind output, int block) {
  check_observed(bundle_, output, block);
  const Tensor& tensor = buffers_.observed.at({output, block});
  const std::int64_t first = buffers_.fork() - last_rows_.base();
  const Tensor rows =
      tensor.rows(first, std::min(buffers_.fork() + last_rows_.degraded, tensor.dim(0)));
  Tensor copy(rows.shape(), rows.dtype());
  stream_.copy(rows, copy);
  return copy;
}

// Fills the request's rows of D_0, D_c or a third branch, which begin at `first`.
void BranchExecutor::fill_rows(DenoisingState& state, Branch branch, std::int64_t first) {
  const std::int64_t last = first + state.images();
  // The latents are copied here and not where a step ends, since a callback may write into them.
  stream_.copy(state.guided.x, buffers_.latent.at(first, last));
  if (const Tensor* modulation = state.modulation(branch)) {
    for (std::int64_t row = first; row < last; ++row)
      stream_.copy(*modulation, buffers_.modulation.at(row, row + 1));
  } else {
    stream_.fill(buffers_.timestep.at(first, last), state.next().point.timestep);
  }
  GuidedStep& guided = state.guided;
  (branch == Branch::unconditional ? guided.unconditional
   : branch == Branch::conditional ? guided.conditional
                                   : guided.degraded) = buffers_.prediction.at(first, last);
  const RowOwner owner{.id = state.id(), .branch = branch};
  for (std::int64_t row = first; row < last; ++row) {
    RowOwner& current = owners_[static_cast<std::size_t>(row)];
    if (current == owner) continue;
    for (const auto& [role, tensor] : state.row(branch))
      stream_.copy(tensor, buffers_.rows.at(role).rows(row, row + 1));
    current = owner;
  }
}

void BranchExecutor::fill_degraded_rows(DenoisingState& state, std::int64_t first) {
  const std::int64_t last = first + state.images();
  state.guided.degraded = buffers_.prediction.at(first, last);
  fill_keep(state, first, state.weights().ma_keep);
}

void BranchExecutor::fill_keep(DenoisingState& state, std::int64_t first, float ma_keep) {
  const std::int64_t last = first + state.images();
  const RowKeep keep{.id = state.id(), .ma_keep = ma_keep};
  const auto current = std::span(keeps_).subspan(static_cast<std::size_t>(first),
                                                 static_cast<std::size_t>(state.images()));
  if (std::ranges::all_of(current, [&](const RowKeep& row) { return row == keep; })) return;
  stream_.fill_keep(buffers_.ma_keep.at(first, last), state.token_mask(), keep.ma_keep);
  std::ranges::fill(current, keep);
}

// Lets the request's rows at `row` take massive channels from those at `third`, counted from the
// first row that runs, or from none. A row that took some in the step before may be another
// branch's now.
void BranchExecutor::fill_source(DenoisingState& state, std::int64_t row,
                                 std::optional<std::int64_t> third) {
  const std::int64_t tokens = buffers_.source.dim(1);
  const auto size = static_cast<std::size_t>(state.images() * tokens);
  const auto source =
      buffers_.source.int64s().subspan(static_cast<std::size_t>(row * tokens), size);
  if (third) {
    std::iota(source.begin(), source.end(), 1 + *third * tokens);
  } else {
    std::ranges::fill(source, 0);
  }
  fill_keep(state, row, third ? state.weights().ma_keep : 1.0F);
}

void BranchExecutor::fill_sources(DenoisingState& state, const BranchRows& rows,
                                  const FirstRows& at) {
  if (rows.third > 0) fill_source(state, at.third, std::nullopt);
  if (rows.unconditional > 0) fill_source(state, at.unconditional, std::nullopt);
  fill_source(state, at.conditional,
              rows.third > 0 ? std::optional(at.third - at.running) : std::nullopt);
}

// Names the anchor of each of these rows, counted from the first row that runs, and those after it.
void BranchExecutor::fill_anchors(std::int64_t row, std::int64_t images, std::int64_t anchor) {
  if (!anchor_.defined()) return;
  const auto rows =
      anchor_.int64s().subspan(static_cast<std::size_t>(row), static_cast<std::size_t>(images));
  std::iota(rows.begin(), rows.end(), anchor);
}

// Fills and binds what a request that fills all rows needs in any of its evaluations.
void BranchExecutor::prepare(DenoisingState& state) {
  const std::int64_t images = state.images(), fork = buffers_.fork();
  fill_rows(state, Branch::conditional, fork - images);
  if (state.request()->unconditional) fill_rows(state, Branch::unconditional, fork - 2 * images);
  if (!state.third_branch()) fill_degraded_rows(state, fork);
  for (StepWeights weights : state.request()->weights) {
    weights.skip = false;  // it may run after all
    graphs_->bind(rows_of(state, weights));
  }
}

// Assigns every request its rows and fills them.
BranchRows BranchExecutor::assign_rows(std::span<DenoisingState* const> states) {
  ordered_.clear();
  for (const bool degraded : {false, true}) {
    for (DenoisingState* state : states)
      if (state->weights().runs_degraded() == degraded) ordered_.push_back(state);
  }
  BranchRows all;
  for (const DenoisingState* state : ordered_) {
    assert(!state->weights().skip);
    const BranchRows rows = rows_of(*state, state->weights());
    all.third += rows.third;
    all.unconditional += rows.unconditional;
    all.conditional += rows.conditional;
    all.degraded += rows.degraded;
  }
  assert(all.conditional <= buffers_.images);
  std::int64_t conditional = buffers_.fork() - all.conditional, degraded = buffers_.fork();
  std::int64_t unconditional = conditional - all.unconditional;
  std::int64_t third = unconditional - all.third;
  const std::int64_t first = third;
  for (DenoisingState* state : ordered_) {
    const BranchRows rows = rows_of(*state, state->weights());
    if (rows.third > 0) fill_rows(*state, Branch::degraded, third);
    if (state->transports()) fill_sources(*state, rows, {first, third, unconditional, conditional});
    if (rows.unconditional > 0) fill_rows(*state, Branch::unconditional, unconditional);
    fill_rows(*state, Branch::conditional, conditional);
    if (rows.degraded > 0) fill_degraded_rows(*state, degraded);
    fill_anchors(third, rows.third, conditional - first);
    fill_anchors(unconditional, rows.unconditional, conditional - first);
    fill_anchors(conditional, rows.conditional, conditional - first);
    third += rows.third;
    unconditional += rows.unconditional;
    conditional += rows.conditional;
    degraded += rows.degraded;
  }
  return all;
}

void BranchExecutor::run(std::span<DenoisingState* const> states) {
  const BranchRows rows = assign_rows(states);
  graphs_->bind(rows);
  Stopwatch watch;
  graphs_->run(rows);
  network_seconds += watch.lap();
  last_rows_ = rows;
}

}  // namespace intaglio
