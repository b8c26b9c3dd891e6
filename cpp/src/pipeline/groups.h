// A run whose images do not fit in memory at once is drawn in groups (docs/decisions/0022).
#pragma once

#include <memory>
#include <vector>

#include "pipeline/loaded_pipeline.h"
#include "pipeline/request.h"

namespace intaglio {

// Returns a request for each group of images, in order: the request itself where its images fit at
// once, and otherwise parts of it, whose prompts are encoded and whose noise is drawn.
std::vector<std::shared_ptr<const Request>> split_in_groups(
    LoadedPipeline& pipeline, const std::shared_ptr<const Request>& request);

// Joins the results of the groups of a request, which have no images yet.
Generation join_groups(const Request& request, std::vector<Generation> groups);

}  // namespace intaglio
