// Requests that run together, each as Pipeline::generate would run it alone.
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

// A step of one member that has ended. Its functions need neither the batch nor the pipeline any
// more, and may be called from other threads while the batch goes on.
struct BatchStep {
  std::int64_t id = 0;
  int step = 0;  // just done, from 0
  int steps = 0;
  float sigma = 0;     // the step started from
  float timestep = 0;  // of the step's last evaluation of the model, in the scheduler's unit
  bool done = false;   // it was the last: finish() has the images, and the member is out
  // What generate() would have thrown, like predictions that are NaN; the member is out, and the
  // functions throw it.
  std::optional<Error> error;
  std::function<std::vector<Image>()> preview;  // decodes the estimate of the clean image
  // What generate() returns, with the counts of the member's own rows and nothing in `loop`; of
  // timings, denoise and network are of the evaluations it was in. Throws UsageError before done.
  std::function<Generation()> finish;
};

// Members share what the transformer takes once for all rows: size, text tokens, suppressed
// channels. All else is each one's own, and each gets what it would get alone; so there is one
// member at a time where rows change each other, since activations are quantised by the tensor
// (int8-dynamic). Not safe to use from several threads at once.
class Batch {
 public:
  // Of one pipeline's requests, with memory for so many images at once. Throws UsageError below 1.
  explicit Batch(const Pipeline& pipeline, std::int64_t max_images = 8);
  Batch(Batch&&) noexcept;
  Batch& operator=(Batch&&) noexcept;
  ~Batch();

  // Takes a request in, before its first step, and returns its id; its prompt is encoded now.
  // Throws what generate() would before it runs, and UsageError for what accepts() says no to; the
  // batch is then as it was.
  std::int64_t add(const GenerateOptions& options);
  // Whether the request shares what members share, or there is none, and its images have room.
  // Throws what generate() would for options that make no sense.
  bool accepts(const GenerateOptions& options) const;
  // Throws UsageError where no member has that id.
  void remove(std::int64_t id);

  // One evaluation of every member in one run of the transformer. Returns the solver steps that
  // this ended, by id (Heun's take two evaluations). Where the run itself fails it throws, and
  // every member is as it was.
  std::vector<BatchStep> step();

  std::size_t size() const;     // members
  std::int64_t images() const;  // of all of them

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace intaglio
