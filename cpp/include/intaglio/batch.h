// A batch of requests that run together. Each gets the result that Pipeline::generate would give it
// alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "intaglio/error.h"
#include "intaglio/image.h"
#include "intaglio/pipeline.h"

namespace intaglio {

// A step of one member that has ended. Its functions need neither the batch nor the pipeline, and
// may be called from other threads while the batch goes on.
struct BatchStep {
  std::int64_t id = 0;
  int step = 0;  // the step that has ended, from 0
  int steps = 0;
  float sigma = 0;       // noise level from which the step started
  float timestep = 0;    // of the step's last evaluation, in the scheduler's unit
  bool skipped = false;  // the model did not run
  // Whether it was the last step. The member has then left, and finish() returns its images.
  bool done = false;
  // The error that generate() would have thrown, for instance because predictions are NaN. The
  // member has then left, and the two functions below throw the error.
  std::optional<Error> error;
  std::function<std::vector<Image>()> preview;  // decodes the estimate of the clean image
  // Returns the result of generate(), with the counts of the member's own rows and an empty `loop`.
  // The timings `denoise` and `network` are those of the evaluations that the member took part in.
  // Throws UsageError before the last step.
  std::function<Generation()> finish;
};

// Members share the inputs that the transformer takes once for all rows: the size, the number of
// text tokens and the suppressed channels. Everything else may differ, and each member gets the
// result that it would get alone. An int8-dynamic bundle of an older version, whose rows change
// each other, therefore takes one member at a time. A batch is not safe to use from several threads
// at once.
class Batch {
 public:
  // Makes a batch that runs up to `max_images` images at once. Throws UsageError if it is less than
  // 1.
  explicit Batch(const Pipeline& pipeline, std::int64_t max_images = 8);
  Batch(Batch&&) noexcept;
  Batch& operator=(Batch&&) noexcept;
  ~Batch();

  // Adds a request, encodes its prompt, and returns its id. Throws what generate() would throw
  // before it runs, and UsageError for a request that accepts() refuses. After an error the batch
  // is unchanged.
  std::int64_t add(const GenerateOptions& options);
  // Returns whether there is room for the request's images and whether its shared inputs are those
  // of the members, if there are any. Throws what generate() would for options that make no sense.
  bool accepts(const GenerateOptions& options) const;
  // Removes a member. Throws UsageError if no member has that id.
  void remove(std::int64_t id);

  // Runs one evaluation of every member in one run of the transformer, and then the steps of each
  // that are skipped. Returns the solver steps that ended, ordered by id, and each member's in
  // order; a step of Heun takes two evaluations. If the run of the transformer fails, step() throws
  // and every member is unchanged. If the arithmetic of one member fails, that member leaves with
  // the error in its step.
  std::vector<BatchStep> step();

  std::size_t size() const;     // number of members
  std::int64_t images() const;  // number of images of all members
  // Whether a member runs whose parts are loaded in turn, because of BackendOptions::max_memory.
  // Then no other request can join, and there are no previews.
  bool in_turn() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace intaglio
