// The manifest's scheduler, refused where the runtime would sample otherwise than diffusers.
#pragma once

#include <string>

#include "bundle/json_node.h"
#include "intaglio/sampling.h"

namespace intaglio {

// Reads `scheduler` and `sigmas` of the manifest `root`. Throws InputError.
SchedulerConfig read_scheduler(const Node& root, const std::string& prediction_type);

}  // namespace intaglio
