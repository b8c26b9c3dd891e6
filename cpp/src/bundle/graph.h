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

// What a graph of the transformer is for.
struct TransformerRole {
  std::vector<std::string> op;  // the op's inputs that it takes
  bool packed = false;
  const Graph* conditioning = nullptr;  // what makes its modulation and context
};

// Refuses a graph that lacks the latent, the timestep (where conditioning is made ahead: what that
// makes) or an input of the op, that takes a role the pipeline cannot fill, one twice, or one with
// another number of axes.
Graph read_transformer_graph(const Node& node, const TransformerRole& role);

// Refuses likewise, and outputs other than the modulation, and the context of a text.
Graph read_conditioning_graph(const Node& node);

// Of the transformer's graph `node`: refuses outputs that are neither the prediction alone nor, in
// the graph that every step runs, the prediction and hidden_states_k and gate_k of every block k,
// on the rows that the block has.
void check_outputs(const Node& node, const Graph& graph, const Bundle& bundle);

}  // namespace intaglio
