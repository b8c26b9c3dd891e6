// The forms of a graph: several files over the same weights, which compute the same.
#pragma once

#include <string>

#include "backend/device_name.h"
#include "intaglio/bundle.h"

namespace intaglio {

// Returns the file that the device runs: the form that its provider takes whole, where the bundle
// has it, or else the portable graph (docs/decisions/0012 and 0021).
const std::string& form_for(const DeviceName& device, const Graph& graph);

}  // namespace intaglio
