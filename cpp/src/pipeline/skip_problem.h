// Checks the options that skip steps against each other.
#pragma once

#include <optional>

#include "intaglio/generate_options.h"
#include "pipeline/problems.h"

namespace intaglio {

// Returns which of the options that skip steps do not fit together, or nothing.
std::optional<Problem> skip_problem(const GenerateOptions& options);

}  // namespace intaglio
