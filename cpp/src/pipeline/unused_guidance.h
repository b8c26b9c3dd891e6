// What a request asks for and does not get, or may not want.
#pragma once

#include <string>
#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/generate_options.h"
#include "pipeline/request.h"

namespace intaglio {

// Returns a sentence for CFG, one for Detail Guidance and one for skipped steps where `given`, the
// options before the bundle's defaults, ask for it and no step of the resolved request has it. A
// scale that turns it off asks for nothing, but a negative prompt always asks for CFG. Also returns
// sentences about scales that steer the other way, and about many skipped steps in a row.
std::vector<std::string> unused_guidance(const Bundle& bundle, const GenerateOptions& given,
                                         const Request& request);

}  // namespace intaglio
