// Checks a request without running it.
#pragma once

#include <string>
#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/error.h"
#include "intaglio/generate_options.h"

namespace intaglio {

// Returns what is wrong with the options, in the order in which generate() checks them; the list is
// empty if generate() would start to run. Messages name options as JSON and Python do ("dg_window
// 0.7:0.2 holds no part of the run ..."); the error that generate() throws for the first problem
// names flags instead.
std::vector<Problem> validate(const Bundle& bundle, const GenerateOptions& options);

// Returns the notes of generate() about guidance that the options ask for and that no step uses.
// Throws the UsageError or InputError of the first problem.
std::vector<std::string> unused_guidance(const Bundle& bundle, const GenerateOptions& options);

}  // namespace intaglio
