#include "pipeline/device_executor.h"

#include <algorithm>
#include <array>
#include <cassert>

#include "core/step_table.h"
#include "core/stopwatch.h"
#include "pipeline/packing.h"

namespace intaglio {

namespace {

// Graphs whose tensors are kept. A request alone has a few; requests that join and leave have more,
// and those of the past make room.
constexpr std::size_t kBound = 16;

Shape with_rows(Shape shape, std::int64_t rows) {
  shape.front() = rows;
  return shape;
}

Tensor int64s(const std::vector<std::int64_t>& values) {
  Tensor tensor({static_cast<std::int64_t>(values.size())}, DType::int64);
  std::ranges::copy(values, tensor.int64s().begin());
  return tensor;
}

// The `source` of the tokens of these rows: 1 + a token's index, or 0 where there is no row.
Tensor tokens_of(const std::vector<std::int64_t>& rows, std::int64_t tokens) {
  std::vector<std::int64_t> all;
  for (const std::int64_t row : rows)
    for (std::int64_t i = 0; i < tokens; ++i) all.push_back(row < 0 ? 0 : 1 + row * tokens + i);
  return int64s(all).reshaped({static_cast<std::int64_t>(rows.size()), tokens});
}

}  // namespace

DeviceExecutor::DeviceExecutor(const Bundle& bundle, const TransformerSessions& sessions,
                               const SharedInputs& shared, std::int64_t images, Stream& stream,
                               std::shared_ptr<DeviceMemory> memory)
    : bundle_(bundle),
      sessions_(sessions),
      shared_(shared),
      stream_(stream),
      memory_(std::move(memory)),
      images_(images) {
  for (const auto& [role, tensor] : inputs_of_all_rows(bundle, shared))
    shared_tensors_[role] = memory_->upload(tensor);
  Tensor ones({1, shared.token_rows * shared.token_columns}, DType::float32);
  std::ranges::fill(ones.floats(), 1.0F);
  ones_ = memory_->upload(ones);
}

void DeviceExecutor::add(DenoisingState& state, const LoopStart& start, bool alone) {
  alone_ = alone;
  const Request& request = *state.request();
  const Tensor zeros(request.latent_shape, DType::float32);
  Member member;
  member.step.scales_tokens = bundle_.cfg_rescale;
  member.step.rule = request.rule;
  member.step.correction = request.correction;
  if (state.term_mask().defined()) member.step.term_mask = memory_->upload(state.term_mask());
  if (start.kept.drawn.defined()) {
    member.step.drawn = memory_->upload(start.kept.drawn);
    member.step.kept_clean = memory_->upload(start.kept.clean);
    member.step.kept_noise = memory_->upload(start.kept.noise);
  }
  const Tensor table = state.step_table();
  if (request.skips()) {
    member.table = table;
    member.step.distance = memory_->allocate({request.images}, DType::float32);
  }
  if (request.adds_noise()) member.step.noise = memory_->upload(zeros);
  member.request = {
      .table = memory_->upload(table),
      .token_mask = memory_->upload(state.token_mask().reshaped({1, state.token_mask().size()}))};
  for (DeviceState* made : {&member.now, &member.next}) {
    made->position = memory_->upload(Tensor({1}, DType::float32));
    made->x = memory_->upload(start.latents);
    std::vector<Tensor*> own{&made->denoised, &made->previous_denoised, &made->previous_x};
    if (request.reuses_unconditional())
      own.insert(own.end(), {&made->newer_unconditional, &made->older_unconditional});
    if (request.reuses_degraded())
      own.insert(own.end(), {&made->newer_degraded, &made->older_degraded});
    if (request.skips()) own.insert(own.end(), {&made->newer_guided, &made->older_guided});
    if (request.corrects()) own.push_back(&made->older_denoised);
    if (request.rule.has_momentum()) own.push_back(&made->momentum);
    if (request.correction.prev != 0) own.push_back(&made->previous_guided);
    for (Tensor* tensor : own) *tensor = memory_->upload(zeros);
  }
  members_[state.id()] = std::move(member);
  if (!alone) return;  // others decide with it which rows run together
  try {
    for (StepWeights weights : request.weights) {
      weights.skip = false;  // it may run after all
      asked_ = {{.state = &state, .weights = &weights}};
      prepare();
    }
  } catch (...) {
    remove(state.id());
    throw;
  }
  asked_.clear();
}

void DeviceExecutor::remove(std::int64_t id) {
  members_.erase(id);
  asked_.clear();
  for (Bound& bound : bound_) bound.gather.members.clear();  // which hold the request's tensors
}

std::int64_t DeviceExecutor::bucket(std::size_t rows, std::int64_t limit) const {
  const auto needed = static_cast<std::int64_t>(rows);
  if (alone_ || needed == 0) return needed;
  std::int64_t size = 1;  // 1, 2, 3, 4, 6, 8, 12, 16, ...
  for (bool half = false; size < needed; half = !half)
    size = size < 3 ? size + 1 : half ? size * 3 / 2 : size * 4 / 3;
  return std::min(size, limit);
}

DeviceExecutor::Rows DeviceExecutor::rows_of(Branch branch) const {
  Rows rows;
  for (const auto& [state, weights] : asked_) {
    const bool runs = branch == Branch::unconditional ? weights->runs_unconditional()
                      : branch == Branch::conditional
                          ? true
                          : weights->runs_degraded() || weights->runs_source();
    for (std::int64_t image = 0; runs && image < state->images(); ++image)
      rows.push_back({.state = state, .image = image, .branch = branch});
  }
  return rows;
}

void DeviceExecutor::run(std::span<DenoisingState* const> states) {
  asked_.clear();
  for (DenoisingState* state : states)
    asked_.push_back({.state = state, .weights = &state->weights()});
  Stopwatch watch;
  const std::vector<Bound*> graphs = prepare();
  for (Bound* bound : graphs) {
    memory_->gather(bound->gather);
    bound->bound->run();
  }
  for (DenoisingState* state : states) {
    DeviceStep& step = members_.at(state->id()).step;
    // Where a branch did not run, D_c stands for it: the difference from D_c is then zero.
    for (const Bound* bound : graphs) {
      const Tensor& prediction = bound->outputs.at(Role::prediction);
      const auto place = [&](Branch branch) {
        const auto found = bound->places.find({state->id(), branch});
        return found == bound->places.end() ? Tensor() : found->second;
      };
      if (const Tensor rows = place(Branch::conditional); rows.defined()) {
        step.prediction = step.degraded_prediction = prediction;
        step.conditional = step.unconditional = step.degraded = rows;
      }
      if (const Tensor rows = place(Branch::unconditional); rows.defined())
        step.unconditional = rows;
      if (const Tensor rows = place(Branch::degraded); rows.defined()) {
        step.degraded_prediction = prediction;
        step.degraded = rows;
      }
    }
  }
  network_seconds += watch.lap();
}

std::vector<DeviceExecutor::Bound*> DeviceExecutor::prepare() {
  Rows base = rows_of(Branch::unconditional), degraded;
  for (const Row& row : rows_of(Branch::degraded))
    (row.state->third_branch() ? base : degraded).push_back(row);
  const Rows conditional = rows_of(Branch::conditional);
  base.insert(base.end(), conditional.begin(), conditional.end());
  if (bundle_.layout == Layout::forked) return {&prepare("forked", base, degraded)};
  std::vector<Bound*> graphs{&prepare("base", base, {})};
  if (!degraded.empty()) graphs.push_back(&prepare("degraded", {}, degraded));
  return graphs;
}

// Binds a graph for these rows and fills its inputs. Rows that fill a bucket repeat the last one.
DeviceExecutor::Bound& DeviceExecutor::prepare(const std::string& graph, const Rows& base,
                                               const Rows& degraded) {
  const auto padded = [&](const Rows& rows, std::int64_t limit) {
    Rows result = rows;
    const std::int64_t size = bucket(rows.size(), limit);
    if (!rows.empty()) result.resize(static_cast<std::size_t>(size), rows.back());
    return result;
  };
  const bool third =
      std::ranges::any_of(asked_, [](const Asked& asked) { return asked.state->third_branch(); });
  Rows rows = padded(base, (third ? 3 : 2) * images_);
  const Rows after = padded(degraded, images_);
  const auto before = static_cast<std::int64_t>(base.empty() ? after.size() : rows.size());
  rows.insert(rows.end(), after.begin(), after.end());
  Bound& bound = bind(graph, before, static_cast<std::int64_t>(rows.size()));
  fill(bound, rows);
  return bound;
}

DeviceExecutor::Bound& DeviceExecutor::bind(const std::string& graph, std::int64_t base,
                                            std::int64_t rows) {
  const auto found = std::ranges::find_if(bound_, [&](const Bound& bound) {
    return bound.graph == graph && bound.base == base && bound.rows == rows;
  });
  if (found != bound_.end()) {
    bound_.splice(bound_.begin(), bound_, found);
    return bound_.front();
  }
  Bound bound;
  bound.graph = graph;
  bound.base = base;
  bound.rows = rows;
  std::vector<Binding> inputs, outputs;
  add_inputs(bound, inputs);
  add_outputs(bound, outputs);
  bound.bound = sessions_.at(graph)->bind(inputs, outputs);
  bound_.push_front(std::move(bound));
  if (bound_.size() > kBound) bound_.pop_back();
  return bound_.front();
}

void DeviceExecutor::add_inputs(Bound& bound, std::vector<Binding>& inputs) {
  const auto index = [&](std::int64_t rows) { return memory_->allocate({rows}, DType::int64); };
  GatherRows& gather = bound.gather;
  gather.images = index(bound.base);
  gather.times = index(bound.base);
  gather.ones = ones_;
  for (const GraphTensor& input : bundle_.transformer_graphs.at(bound.graph).inputs) {
    Tensor tensor;
    if (input.role == Role::latent) {
      tensor = gather.latent =
          memory_->allocate(with_rows(shared_.latent, bound.base), DType::float32);
    } else if (input.role == Role::timestep) {
      tensor = gather.time = memory_->allocate({bound.base}, DType::float32);
    } else if (input.role == Role::modulation) {
      tensor = gather.time = memory_->allocate({bound.base, shared_.modulation}, DType::float32);
    } else if (input.role == Role::keep) {
      gather.keeps = index(bound.rows);
      tensor = gather.keep =
          memory_->allocate(with_rows(ones_.shape(), bound.rows), DType::float32);
    } else if (input.role == Role::branch) {
      tensor = bound.branch = index(bound.rows);
    } else if (input.role == Role::source) {
      tensor = bound.source = memory_->allocate(with_rows(ones_.shape(), bound.rows), DType::int64);
    } else if (input.role == Role::anchor) {
      tensor = bound.anchor = index(bound.base);
    } else if (const auto shared = shared_tensors_.find(input.role);
               shared != shared_tensors_.end()) {
      tensor = shared->second;
    } else {
      const SharedInputs::Size& size = shared_.rows.at(input.role);
      tensor = bound.prompts[input.role] =
          memory_->allocate(with_rows(size.shape, bound.base), size.dtype);
    }
    inputs.push_back({input.role, tensor});
  }
}

void DeviceExecutor::add_outputs(Bound& bound, std::vector<Binding>& outputs) {
  const std::int64_t tokens = ones_.dim(1), channels = bundle_.hidden_size;
  for (const GraphTensor& output : bundle_.transformer_graphs.at(bound.graph).outputs) {
    const bool before_fork = bundle_.layout == Layout::forked && output.role != Role::prediction &&
                             output.role.block <= bundle_.massive_activations.block;
    const std::int64_t rows = before_fork ? bound.base : bound.rows;
    const Shape shape = output.role.kind == Role::hidden_states ? Shape{rows, tokens, channels}
                        : output.role.kind == Role::gate        ? Shape{rows, channels}
                                                                : with_rows(shared_.latent, rows);
    bound.outputs[output.role] = memory_->allocate(shape, DType::float32);
    outputs.push_back({output.role, bound.outputs[output.role]});
  }
}

// Fills the inputs that stay the same as long as the same requests have the same rows.
void DeviceExecutor::fill(Bound& bound, const Rows& rows) {
  bound.gather.members.clear();
  for (const Asked& asked : asked_) {
    const Member& member = members_.at(asked.state->id());
    const Tensor* modulation = asked.state->modulation_part();
    bound.gather.members.push_back({.x = member.now.x,
                                    .position = member.now.position,
                                    .modulation = modulation ? *modulation : Tensor(),
                                    .request = member.request});
  }
  decltype(bound.filled) filled;
  for (const Row& row : rows) filled.emplace_back(row.state->id(), row.image, row.branch);
  if (filled == bound.filled) return;
  bound.filled.clear();  // until all of it is there
  fill_indices(bound, rows);
  fill_prompts(bound, rows);
  bound.filled = std::move(filled);
}

void DeviceExecutor::fill_indices(Bound& bound, const Rows& rows) {
  std::map<const DenoisingState*, std::int64_t> member_of, image_of;
  std::int64_t images = 0;
  for (const Asked& asked : asked_) {
    member_of[asked.state] = static_cast<std::int64_t>(member_of.size());
    image_of[asked.state] = std::exchange(images, images + asked.state->images());
  }
  const auto none = static_cast<std::int64_t>(asked_.size());
  std::vector<std::int64_t> image, time, keep, branch, source;
  std::map<std::pair<std::int64_t, Branch>, std::vector<std::int64_t>> places;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto& [state, number, kind] = rows[i];
    const std::int64_t member = member_of[state];
    if (std::cmp_less(i, bound.base)) {
      image.push_back(image_of[state] + number);
      time.push_back(shared_.modulation > 0 ? 3 * member + static_cast<std::int64_t>(kind)
                                            : member);
    }
    const auto& third = places[{state->id(), Branch::degraded}];
    const bool takes = kind == Branch::conditional && state->transports() && !third.empty();
    const bool suppressed = takes || (kind == Branch::degraded && !state->third_branch());
    source.push_back(takes ? third[static_cast<std::size_t>(number)] : -1);
    keep.push_back(suppressed ? member : none);
    auto& own = places[{state->id(), kind}];
    if (std::cmp_less(own.size(), state->images())) own.push_back(static_cast<std::int64_t>(i));
    // After the fork D_m continues D_c.
    const auto& from = kind == Branch::degraded ? places[{state->id(), Branch::conditional}] : own;
    branch.push_back(std::cmp_less(i, bound.base) ? static_cast<std::int64_t>(i)
                                                  : from[static_cast<std::size_t>(number)]);
  }
  if (bound.anchor.defined()) {
    std::vector<std::int64_t> anchor;  // the row of D_c of each row before the fork
    for (const Row& row : std::span(rows).first(static_cast<std::size_t>(bound.base)))
      anchor.push_back(
          places.at({row.state->id(), Branch::conditional})[static_cast<std::size_t>(row.image)]);
    memory_->copy(int64s(anchor), bound.anchor);
  }
  memory_->copy(int64s(image), bound.gather.images);
  memory_->copy(int64s(time), bound.gather.times);
  if (bound.gather.keeps.defined()) memory_->copy(int64s(keep), bound.gather.keeps);
  if (bound.branch.defined()) memory_->copy(int64s(branch), bound.branch);
  if (bound.source.defined()) memory_->copy(tokens_of(source, ones_.dim(1)), bound.source);
  bound.places.clear();
  for (const auto& [key, place] : places)
    if (!place.empty()) bound.places[key] = memory_->upload(int64s(place));
}

void DeviceExecutor::fill_prompts(Bound& bound, const Rows& rows) {
  for (const auto& [role, tensor] : bound.prompts) {
    Tensor host(tensor.shape(), tensor.dtype());
    for (std::int64_t i = 0; i < bound.base; ++i) {
      const Row& row = rows[static_cast<std::size_t>(i)];
      const auto& given = row.state->row(row.branch);
      const auto found = std::ranges::find(given, role, &Binding::role);
      assert(found != given.end());
      stream_.copy(found->tensor, host.rows(i, i + 1));
    }
    memory_->copy(host, tensor);
  }
}

void DeviceExecutor::step(DenoisingState& state) {
  Member& member = members_.at(state.id());
  // Somebody may still want to see an earlier estimate.
  if (member.next.denoised.owner().use_count() > 1)
    member.next.denoised = memory_->allocate(state.request()->latent_shape, DType::float32);
  state.prepare_step();
  if (member.step.noise.defined()) memory_->copy(state.guided.noise, member.step.noise);
  if (member.table.defined()) {  // which steps are skipped is known only now
    state.write_next(member.table);
    memory_->copy(member.table, member.request.table);
  }
  member.step.table = member.request.table;
  member.step.from = member.now;
  member.step.to = member.next;
  memory_->step(member.step);
  member.step.from = member.step.to = {};
  std::swap(member.now, member.next);
  double distance = 0;
  if (state.measures_distance()) {
    const Tensor distances = memory_->download(member.step.distance);
    distance = std::ranges::max(distances.floats());
  }
  state.advance(distance);
}

std::function<Tensor()> DeviceExecutor::denoised(const DenoisingState& state) {
  return [memory = memory_, denoised = members_.at(state.id()).now.denoised] {
    return memory->download(denoised);
  };
}

Tensor DeviceExecutor::observed(Role::Kind output, int block) {
  check_observed(bundle_, output, block);
  assert(alone_);  // so no row is padding
  // With layout dual, only the graph of D_0 and D_c has such outputs.
  const auto ran = std::ranges::find_if(
      bound_, [&](const Bound& bound) { return bound.outputs.contains({output, block}); });
  return memory_->download(ran->outputs.at({output, block}));
}

}  // namespace intaglio
