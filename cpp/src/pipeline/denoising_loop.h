// The denoising loop: every request runs in it, alone or with others.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "core/stopwatch.h"
#include "pipeline/denoising_state.h"
#include "pipeline/loaded_pipeline.h"
#include "pipeline/loop_executor.h"

namespace intaglio {

// A request in the loop, with the results that are known so far.
struct LoopMember {
  DenoisingState state;
  Generation generation;
  Stopwatch since_added;
  double step_seconds = 0;  // of the evaluations since its last step
  // Why the member cannot go on, where its own arithmetic failed.
  std::exception_ptr failure = nullptr;
};

// Requests that share the transformer's runs; they must agree in what SharedInputs holds. Whoever
// uses the loop checks that, and that there is room for their images.
class DenoisingLoop {
 public:
  // Both must outlive the loop, which has memory for so many images at once.
  DenoisingLoop(LoadedPipeline& pipeline, Stream& stream, std::int64_t max_images)
      : pipeline_(pipeline), stream_(stream), memory_(pipeline.memory()), max_images_(max_images) {}

  // Encodes the prompt and allocates and binds what the request needs. When it throws, the loop is
  // as it was.
  LoopMember& add(std::shared_ptr<const Request> request);
  // Returns false where no member has that id.
  bool remove(std::int64_t id);
  // Lets go of all that is loaded. There must be no member.
  void unload();

  // Called after each solver step that ended, and for a member with a failure, which has to leave.
  // Where it returns false, the member does not go on.
  using OnStep = std::function<bool(LoopMember&)>;

  // Runs one evaluation of every member in one run of the transformer, and then the steps of each
  // that are skipped, so that every member has an evaluation to run next. Nothing is allocated,
  // unless other rows run than before. Where the run itself fails it throws, and every member is as
  // it was.
  void evaluate(const OnStep& on_step);

  std::size_t size() const { return members_.size(); }
  std::int64_t images() const;
  // What was allocated and copied by the loop.
  StreamCounts counts() const;
  // Whether the members' latents are in the host's memory.
  bool on_host() const { return !memory_; }
  // Both only where there is a member.
  LoopExecutor& executor() const { return *executor_; }
  const Request& shared_with() const { return *shared_with_; }

 private:
  void list_members();
  bool advance(LoopMember& member, double seconds, const OnStep& on_step);

  LoadedPipeline& pipeline_;
  Stream& stream_;
  std::shared_ptr<DeviceMemory> memory_;  // null where the loop runs in the host's
  std::int64_t max_images_;
  std::int64_t next_id_ = 0;
  std::shared_ptr<const Request> shared_with_;  // one of the requests that executor_ is for
  std::shared_ptr<const TransformerSessions> sessions_;  // which the executor uses
  std::unique_ptr<LoopExecutor> executor_;
  std::map<std::int64_t, LoopMember> members_;  // by id
  std::vector<DenoisingState*> states_;  // of the members, so that evaluate() allocates nothing
};

// Whether two requests may share an executor.
bool share_inputs(const Request& a, const Request& b);

// Completes the results of a member whose last step has ended, but for its images. Throws
// InputError for latents that are not finite.
void finalize(LoopMember& member, const LoadedPipeline& pipeline, LoopExecutor& executor);

// Throws InputError, saying what to do, for values that are not finite.
void check_finite(const Tensor& latents);

}  // namespace intaglio
