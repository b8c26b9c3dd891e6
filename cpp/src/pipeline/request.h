// A call's options with the bundle's defaults filled in, checked before any work starts.
#pragma once

#include <cstdint>
#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/pipeline.h"
#include "sampling/plan.h"

namespace intaglio {

struct Request {
  std::int64_t images = 1;
  int height = 0, width = 0;           // pixels
  std::int64_t rows = 0, columns = 0;  // latent cells
  std::int64_t token_rows = 0, token_columns = 0;
  Shape latent_shape;  // of all images, as the loop has them: packed where the bundle says so
  int class_label = 0;
  float distilled_guidance = 0;
  Guidance guidance;
  std::vector<StepWeights> weights;  // of each step
  Schedule schedule;                 // of the steps that run
  bool unconditional = false;        // whether a step runs that branch
  Plan plan;                         // the same, as what each evaluation does
  std::vector<std::uint64_t> seeds;
  Tensor mask;         // [C]
  Tensor ref;          // [C]
  Tensor suppression;  // [tokens]: 1 where massive channels may be suppressed
};

// Throws UsageError and InputError.
Request resolve(const Bundle& bundle, const GenerateOptions& options);

}  // namespace intaglio
