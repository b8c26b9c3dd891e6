// The manifest's prompt or classes.
#pragma once

#include "bundle/json_node.h"
#include "intaglio/bundle.h"

namespace intaglio {

// Sets bundle.prompt or bundle.classes, of which the manifest `root` has to have exactly one, and
// refuses what the transformer's inputs contradict.
void read_condition(const Node& root, Bundle& bundle);

}  // namespace intaglio
