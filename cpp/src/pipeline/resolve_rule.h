// The rule by which a request's CFG combines its predictions.
#pragma once

#include <optional>
#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/cfg_rule.h"
#include "intaglio/error.h"
#include "intaglio/generate_options.h"

namespace intaglio {

// Adds a problem for an unknown rule, for a parameter of another rule, and for a rule that is not
// defined for the bundle. The ranges are left to guidance_problems().
CfgRule resolve_rule(const Bundle& bundle, const GenerateOptions& options,
                     std::vector<Problem>& problems);

// Adds a problem for a correction that is not defined for the run's sampler.
Correction resolve_correction(const Bundle& bundle, const GenerateOptions& options,
                              std::vector<Problem>& problems);

// Says that no step has CFG, which a rule that was asked for needs, if that is so.
std::optional<Problem> rule_without_cfg(const GenerateOptions& options, bool unconditional);

}  // namespace intaglio
