// How the transformer is told what to draw, in the manifest.
#pragma once

#include "bundle/json_node.h"
#include "intaglio/bundle.h"

namespace intaglio {

// Sets bundle.prompt or bundle.classes, of which the manifest `root` has to have one, and refuses
// what the transformer's inputs contradict.
void read_condition(const Node& root, Bundle& bundle);

}  // namespace intaglio
