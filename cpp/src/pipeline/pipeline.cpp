#include "intaglio/pipeline.h"

#include <utility>

#include "bundle/opening.h"
#include "core/stopwatch.h"
#include "intaglio/error.h"
#include "pipeline/denoising_loop.h"
#include "pipeline/groups.h"
#include "pipeline/loaded_pipeline.h"
#include "pipeline/validate_inputs.h"

namespace intaglio {

namespace {

// What a step callback sees of the run. There is one for all steps, so that a step allocates
// nothing.
class StepView {
 public:
  // `group` counts from 0.
  StepView(LoadedPipeline& pipeline, const DenoisingLoop& loop, LoopMember& member, int group,
           int groups)
      : loop_(loop), state_(member.state) {
    step_.first_image = state_.request()->first_image;
    step_.group = group;
    step_.groups = groups;
    step_.latents = [this] {
      if (!shown_.defined()) shown_ = loop_.executor().latents(state_);
      return shown_;
    };
    step_.preview = [this, &pipeline] {
      return pipeline.preview(*state_.request(), loop_.executor().denoised(state_)());
    };
    const auto observed = [this](Role::Kind output, int block) {
      const Tensor tensor = loop_.executor().observed(output, block);
      if (state_.last_skipped()) {
        throw UsageError("step " + std::to_string(step_.step) +
                         " was skipped, so no block computed anything: read steps that are run, or "
                         "run without skipping");
      }
      return tensor;
    };
    step_.hidden_states = [observed](int block) { return observed(Role::hidden_states, block); };
    step_.gate = [observed](int block) { return observed(Role::gate, block); };
  }
  StepView(const StepView&) = delete;  // the functions point here
  StepView& operator=(const StepView&) = delete;

  // Calls back after the step that `last` ended, and takes back what was written into the latents.
  // Returns false when the run is to stop.
  bool call(const StepCallback& on_step, const Evaluation& last) {
    step_.step = last.ended->step;
    step_.steps = last.ended->steps;
    step_.sigma = last.ended->sigma;
    step_.timestep = last.point.timestep;
    shown_ = {};
    const bool go_on = on_step(step_);
    if (shown_.defined()) loop_.executor().set_latents(state_, shown_);
    return go_on;
  }

 private:
  const DenoisingLoop& loop_;
  const DenoisingState& state_;
  Tensor shown_;  // the latents, once the callback has asked for them
  Step step_;
};

// Returns the results of one group but for its images. Its memory is free then.
Generation denoise(LoadedPipeline& pipeline, Stream& stream,
                   const std::shared_ptr<const Request>& request, int group, int groups,
                   const StepCallback& on_step) {
  DenoisingLoop loop(pipeline, stream, request->images);
  LoopMember& member = loop.add(request);
  Generation& generation = member.generation;
  StepView view(pipeline, loop, member, group, groups);
  Stopwatch watch;
  const StreamCounts before = loop.counts();
  StreamCounts called_back;  // what a callback asked for is not the loop's
  const DenoisingLoop::OnStep call_back = [&](LoopMember& stepped) {
    if (stepped.failure) std::rethrow_exception(stepped.failure);
    if (!on_step) return true;
    const StreamCounts own = loop.counts();
    const Evaluation& last = member.state.last();
    if (!view.call(on_step, last)) {
      throw Interrupted("stopped after step " + std::to_string(last.point.step + 1) + " of " +
                        std::to_string(request->schedule.steps()));
    }
    called_back += loop.counts() - own;
    return true;
  };
  while (!member.state.ended()) loop.evaluate(call_back);
  generation.loop = loop.counts() - before - called_back;
  finalize(member, pipeline, loop.executor());
  generation.timings.denoise = watch.lap();
  return std::move(generation);
}

// Returns the results of a run but for its images.
Generation denoise_all(LoadedPipeline& pipeline, Stream& stream,
                       const std::shared_ptr<const Request>& request, const StepCallback& on_step) {
  Stopwatch watch;
  const auto groups = split_in_groups(pipeline, request);
  const double prepared = watch.lap();
  const int count = static_cast<int>(groups.size());
  std::vector<Generation> generations;
  for (int group = 0; group < count; ++group)
    generations.push_back(
        denoise(pipeline, stream, groups[static_cast<std::size_t>(group)], group, count, on_step));
  Generation generation = join_groups(*request, std::move(generations));
  generation.timings.text += prepared;
  return generation;
}

}  // namespace

Pipeline::Pipeline(std::shared_ptr<LoadedPipeline> loaded) : loaded_(std::move(loaded)) {}
Pipeline::Pipeline(Pipeline&&) noexcept = default;
Pipeline& Pipeline::operator=(Pipeline&&) noexcept = default;
Pipeline::~Pipeline() = default;

Pipeline::Pipeline(Bundle bundle, std::shared_ptr<Backend> backend)
    : Pipeline(LoadedPipeline::make(std::move(bundle), std::move(backend), {})) {}

Pipeline Pipeline::open(const std::filesystem::path& bundle, const BackendOptions& backend) {
  OpenedBundle opened = open_bundle(bundle);
  auto used = make_backend(backend, opened.bundle);
  Pipeline pipeline(LoadedPipeline::make(std::move(opened.bundle), std::move(used), backend));
  pipeline.loaded_->check_in_background(opened.check_large_files);
  return pipeline;
}

const Bundle& Pipeline::bundle() const { return loaded_->bundle; }
const Backend& Pipeline::backend() const { return *loaded_->backend; }

void Pipeline::load(const std::function<bool(int stage, int stages)>& loading) const {
  loaded_->check_usable();
  const auto stages = loaded_->stages();
  const int count = static_cast<int>(stages.size());
  for (int stage = 0; stage < count; ++stage) {
    if (!loading(stage, count)) throw Interrupted("stopped while the model was loaded");
    stages[static_cast<std::size_t>(stage)]();
  }
  loading(count, count);
}

PromptEmbeddings Pipeline::embed(const std::string& prompt,
                                 const std::optional<std::string>& negative_prompt) const {
  check_encoders(loaded_->bundle);
  loaded_->check_usable();
  const auto turn = loaded_->take_turn();
  const MemoryPlan plan = loaded_->text_plan();
  if (plan.in_turn) loaded_->let_go();
  std::vector<NamedText> texts{{prompt, "prompt"}};
  if (negative_prompt) texts.push_back({*negative_prompt, "negative prompt"});
  PromptEmbeddings embeddings = loaded_->encode(texts, plan);
  loaded_->wait_for_check();
  return embeddings;
}

Generation Pipeline::generate(const GenerateOptions& options, const StepCallback& on_step) const {
  Stopwatch total;
  const auto turn = loaded_->take_turn();
  const auto request = std::make_shared<const Request>(loaded_->plan(options, 0));
  if (request->memory.in_turn) loaded_->let_go();
  const auto stream = backend().make_stream();
  Generation generation = denoise_all(*loaded_, *stream, request, on_step);
  if (request->memory.in_turn) loaded_->let_go();
  Stopwatch watch;
  generation.images = loaded_->decode(*request, generation.latents);
  generation.timings.vae = watch.lap();
  generation.timings.total = total.lap();
  return generation;
}

}  // namespace intaglio
