// Graphs in the manifest.
#pragma once

#include <string>
#include <vector>

#include "bundle/json_node.h"
#include "intaglio/bundle.h"

namespace intaglio {

// Refuses a text that is none of those.
void check_one_of(const Node& node, const std::vector<std::string>& allowed);

Graph read_graph(const Node& node);

// A graph of the transformer with the inputs `op_roles` of the op. Refuses one that lacks the
// latent, the timestep or one of these, that takes a role the pipeline cannot fill, one twice, or
// one with another number of axes.
Graph read_transformer_graph(const Node& node, const std::vector<std::string>& op_roles,
                             bool packed);

// Of the transformer's graph `node`: refuses outputs that are neither the prediction alone nor, in
// the graph that every step runs, the prediction and hidden_states_k and gate_k of every block k,
// on the rows that the block has.
void check_outputs(const Node& node, const Graph& graph, const Bundle& bundle);

}  // namespace intaglio
