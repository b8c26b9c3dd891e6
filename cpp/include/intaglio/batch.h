// Requests that run together. Each one gets what Pipeline::generate would give it alone.
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
  int step = 0;  // just done, from 0
  int steps = 0;
  float sigma = 0;     // the step started from
  float timestep = 0;  // of the step's last evaluation of the model, in the scheduler's unit
  bool done = false;   // it was the last: finish() returns the images, and the member has left
  // What generate() would have thrown, for instance for predictions that are NaN. The member has
  // left, and the functions throw the error.
  std::optional<Error> error;
  std::function<std::vector<Image>()> preview;  // decodes the estimate of the clean image
  // Returns what generate() would, with the counts of the member's own rows and nothing in `loop`.
  // The timings `denoise` and `network` are those of the evaluations that it was in. Throws
  // UsageError before the last step.
  std::function<Generation()> finish;
};

// Members share what the transformer takes once for all rows: the size, the number of text tokens,
// the suppressed channels. Everything else is each member's own, and each gets what it would get
// alone. A bundle that quantises activations by the tensor (int8-dynamic) therefore takes one
// member at a time, since rows there change each other. A batch is not safe to use from several
// threads at once.
class Batch {
 public:
  // Has memory for so many images at once. Throws UsageError for less than 1.
  explicit Batch(const Pipeline& pipeline, std::int64_t max_images = 8);
  Batch(Batch&&) noexcept;
  Batch& operator=(Batch&&) noexcept;
  ~Batch();

  // Takes a request in, encodes its prompt, and returns its id. Throws what generate() would throw
  // before it runs, and UsageError for a request that accepts() refuses. The batch is then as it
  // was.
  std::int64_t add(const GenerateOptions& options);
  // Returns whether there is room for the request's images and it agrees with the members, if there
  // are any, in what members share. Throws what generate() would for options that make no sense.
  bool accepts(const GenerateOptions& options) const;
  // Throws UsageError where no member has that id.
  void remove(std::int64_t id);

  // Runs one evaluation of every member in one run of the transformer. Returns the solver steps
  // that this ended, by id; a step of Heun takes two evaluations. Where the run itself fails it
  // throws, and every member is as it was.
  std::vector<BatchStep> step();

  std::size_t size() const;     // members
  std::int64_t images() const;  // of all members

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace intaglio
