// Guidance that a request asks for and that no step of it uses.
#pragma once

#include <string>
#include <vector>

#include "intaglio/generate_options.h"
#include "pipeline/request.h"

namespace intaglio {

// Returns a sentence for CFG and one for Detail Guidance where `given`, the options before the
// bundle's defaults, ask for it and no step of the resolved request runs its branch. A scale that
// turns it off asks for nothing, but a negative prompt always asks for CFG.
std::vector<std::string> unused_guidance(const GenerateOptions& given, const Request& request);

}  // namespace intaglio
