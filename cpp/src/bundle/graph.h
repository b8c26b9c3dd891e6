// Reads graphs from the manifest.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "bundle/json_node.h"
#include "intaglio/bundle.h"

namespace intaglio {

// Refuses a text that is not one of those.
void check_one_of(const Node& node, const std::vector<std::string>& allowed);

// Reads the value whose name the node holds. Refuses other names.
template <typename Enum>
Enum read_one_of(const Node& node, std::initializer_list<Enum> values) {
  const auto text = node.as<std::string>();
  std::vector<std::string> names;
  for (const Enum value : values) {
    if (text == name_of(value)) return value;
    names.emplace_back(name_of(value));
  }
  check_one_of(node, names);
  return *values.begin();  // not reached
}

// Refuses a tensor's role that is not one of those.
void check_role(const Node& node, const Role& role, const std::vector<Role>& allowed);

Graph read_graph(const Node& node);

// What a graph of the transformer is for.
struct TransformerRole {
  std::vector<Role> op;  // the op's inputs that it takes
  bool packed = false;
  const Graph* conditioning = nullptr;  // the graph that computes its modulation and context
};

// Refuses a graph that lacks the latent, the timestep (or, where conditioning is computed ahead,
// the outputs of that graph) or an input of the op; and one that takes a role that the pipeline
// cannot fill, the same role twice, or a tensor with another number of axes.
Graph read_transformer_graph(const Node& node, const TransformerRole& role);

// Refuses the same, and outputs other than the modulation and, for a text, its context.
Graph read_conditioning_graph(const Node& node);

// Checks the outputs of the transformer's graph `node`: the prediction alone, or, in the graph that
// every step runs, also hidden_states_k and gate_k of every block k, with the rows that the block
// has.
void check_outputs(const Node& node, const Graph& graph, const Bundle& bundle);

}  // namespace intaglio
