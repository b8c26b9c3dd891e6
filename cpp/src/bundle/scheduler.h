// The manifest's scheduler. It is refused where the runtime would sample differently than
// diffusers.
#pragma once

#include "bundle/json_node.h"
#include "intaglio/sampling.h"

namespace intaglio {

// Reads `scheduler` and `sigmas` of the manifest `root`. Throws InputError.
SchedulerConfig read_scheduler(const Node& root, PredictionType prediction_type);

}  // namespace intaglio
