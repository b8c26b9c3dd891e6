// Where, when and from which prompt massive channels change: --ma-keep-by, --dg-region and
// --transport-from.
#pragma once

#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/error.h"
#include "intaglio/generate_options.h"
#include "intaglio/guidance.h"
#include "intaglio/sampling.h"

namespace intaglio {

// Returns ma_keep of each step where it goes with the timestep, as rho_t of arXiv 2607.02968: from
// its first value at the largest timestep of training, pure noise, to its last at 0.
Ramp by_timestep(const Ramp& keep, const Schedule& schedule, int num_train_timesteps);

// Adds what is wrong with --ma-keep-by and --dg-region.
void check_region(const GenerateOptions& options, std::vector<Problem>& problems);

// Takes --transport-from into `guidance`. Adds a problem where it does not fit the bundle or other
// options, which have the bundle's defaults.
void set_transport(const Bundle& bundle, const GenerateOptions& options, Guidance& guidance,
                   std::vector<Problem>& problems);

}  // namespace intaglio
