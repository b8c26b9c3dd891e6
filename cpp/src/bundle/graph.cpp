#include "bundle/graph.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace intaglio {

namespace {

Role read_role(const Node& node) {
  const std::optional<Role> role = role_from(node.as<std::string>());
  if (!role)
    node.refuse("must be a role that this version knows (a newer bundle needs a newer Intaglio)");
  return *role;
}

GraphTensor read_tensor(const Node& node) {
  GraphTensor tensor{.name = node.get<std::string>("name"),
                     .role = read_role(node.at("role")),
                     .dtype = read_one_of(node.at("dtype"), {DType::float32, DType::int64}),
                     .axes = {}};
  for (const Node& axis : node.at("axes").items()) {
    if (axis.is_string()) {
      tensor.axes.emplace_back(axis.as<std::string>());
    } else {
      // All modulations of a large model side by side are a million.
      const int limit = tensor.role == Role::modulation ? 1 << 24 : kLargestSize;
      tensor.axes.emplace_back(std::int64_t{axis.positive(limit)});
    }
  }
  return tensor;
}

// The pipeline relies on the number of axes of each role.
void check_axes(const Node& node, const GraphTensor& input, bool packed) {
  static const std::map<Role, std::size_t> more{
      {Role::text, 3},       {Role::text_mask, 2},         {Role::pooled, 2}, {Role::modulation, 2},
      {Role::position, 2},   {Role::context, 3},           {Role::keep, 2},   {Role::source, 2},
      {Role::references, 3}, {Role::reference_position, 2}};
  std::size_t needed = 1;
  if (input.role == Role::latent) needed = packed ? 3 : 4;
  if (const auto found = more.find(input.role); found != more.end()) needed = found->second;
  if (input.axes.size() == needed) return;
  node.at("axes").refuse("must be " + std::to_string(needed) + " for an input of role " +
                         to_string(input.role));
}

void check_inputs(const Node& node, const Graph& graph, std::vector<Role> optional,
                  const std::vector<Role>& needed, bool packed) {
  const auto inputs = node.at("inputs").items();
  optional.insert(optional.end(), needed.begin(), needed.end());
  std::set<Role> roles;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    check_role(inputs[i], graph.inputs[i].role, optional);
    if (!roles.insert(graph.inputs[i].role).second)
      inputs[i].at("role").refuse("is that of two inputs");
  }
  for (const Role& role : needed) {
    if (!roles.contains(role)) node.at("inputs").refuse("have none of role " + to_string(role));
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) check_axes(inputs[i], graph.inputs[i], packed);
}

// Checks a tensor that one graph computes and the other takes.
void check_made(const Node& node, const Graph& graph, const GraphTensor& made) {
  const GraphTensor& taken = graph.input(made.role);
  if (taken.axes.back() != made.axes.back() || taken.dtype != made.dtype)
    node.at("inputs").refuse("take another " + to_string(made.role) +
                             " than the graph conditioning makes");
}

}  // namespace

void check_one_of(const Node& node, const std::vector<std::string>& allowed) {
  const auto value = node.as<std::string>();
  if (std::ranges::find(allowed, value) != allowed.end()) return;
  std::string list;
  for (const std::string& name : allowed) list += (list.empty() ? "" : " or ") + name;
  node.refuse("must be " + list);
}

void check_role(const Node& node, const Role& role, const std::vector<Role>& allowed) {
  if (std::ranges::find(allowed, role) != allowed.end()) return;
  std::vector<std::string> names;
  for (const Role& name : allowed) names.push_back(to_string(name));
  check_one_of(node.at("role"), names);
}

Graph read_graph(const Node& node) {
  Graph graph;
  graph.path = node.file_path("path");
  if (node.has("cpu")) graph.cpu = node.file_path("cpu");
  if (node.has("decomposed")) graph.decomposed = node.file_path("decomposed");
  for (const Node& item : node.at("inputs").items()) graph.inputs.push_back(read_tensor(item));
  for (const Node& item : node.at("outputs").items()) graph.outputs.push_back(read_tensor(item));
  return graph;
}

Graph read_transformer_graph(const Node& node, const TransformerRole& role) {
  Graph graph = read_graph(node);
  // What cpp/src/pipeline/branch_executor.cpp and denoising_state.cpp can fill.
  std::vector<Role> optional{Role::text_mask, Role::position, Role::references,
                             Role::reference_position};
  if (std::ranges::count(role.op, Role(Role::branch)) > 0)
    for (const Role::Kind kind : {Role::anchor, Role::source}) optional.emplace_back(kind);
  std::vector<Role> needed{Role::latent};
  needed.insert(needed.end(), role.op.begin(), role.op.end());
  if (role.conditioning) {
    for (const GraphTensor& made : role.conditioning->outputs) needed.push_back(made.role);
  } else {
    needed.emplace_back(Role::timestep);
    for (const Role::Kind kind : {Role::text, Role::pooled, Role::guidance, Role::class_label})
      optional.emplace_back(kind);
  }
  check_inputs(node, graph, optional, needed, role.packed);
  if (role.conditioning)
    for (const GraphTensor& made : role.conditioning->outputs) check_made(node, graph, made);
  return graph;
}

Graph read_conditioning_graph(const Node& node) {
  Graph graph = read_graph(node);
  // What cpp/src/pipeline/precompute.cpp can fill.
  check_inputs(node, graph,
               {Role::text, Role::text_mask, Role::pooled, Role::guidance, Role::class_label},
               {Role::timestep}, false);
  std::map<Role, std::size_t> axes{{Role::modulation, 2}};
  if (graph.takes(Role::text)) axes[Role::context] = 3;
  const auto outputs = node.at("outputs").items();
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const GraphTensor& output = graph.outputs[i];
    const auto wanted = axes.extract(output.role);
    if (wanted.empty())
      outputs[i].at("role").refuse("is nothing that conditioning makes, or there twice");
    if (output.axes.size() != wanted.mapped() ||
        !std::holds_alternative<std::int64_t>(output.axes.back()))
      outputs[i].at("axes").refuse("must be " + std::to_string(wanted.mapped()) +
                                   ", the last of a fixed size");
  }
  if (!axes.empty())
    node.at("outputs").refuse("have none of role " + to_string(axes.begin()->first));
  return graph;
}

void check_outputs(const Node& node, const Graph& graph, const Bundle& bundle) {
  const Node list = node.at("outputs");
  const auto outputs = list.items();
  std::map<Role, std::size_t> indices;  // of the outputs that are still to be checked
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (!indices.emplace(graph.outputs[i].role, i).second)
      outputs[i].at("role").refuse("is that of two outputs");
  }
  const auto take = [&](const Role& role) {
    const auto found = indices.extract(role);
    if (found.empty()) list.refuse("have none of role " + to_string(role));
    return found.mapped();
  };
  const GraphTensor& prediction = graph.outputs[take(Role::prediction)];
  const bool observed = !indices.empty() && &graph == &bundle.transformer();
  for (int block = 0; observed && block < bundle.blocks; ++block) {
    const bool forks = block > bundle.massive_activations.block;
    const auto& rows = (forks ? prediction : graph.input(Role::latent)).axes;
    for (const auto& [kind, axes] :
         {std::pair{Role::hidden_states, 3U}, std::pair{Role::gate, 2U}}) {
      const std::size_t index = take({kind, block});
      const GraphTensor& output = graph.outputs[index];
      check_one_of(outputs[index].at("dtype"), {"float32"});
      if (rows.empty() || output.axes.size() != axes || output.axes.front() != rows.front() ||
          output.axes.back() !=
              decltype(output.axes)::value_type{std::int64_t{bundle.hidden_size}}) {
        outputs[index].at("axes").refuse(
            "must be " + std::to_string(axes) + ", first the rows of the " +
            (forks ? "prediction" : "latent") + " and last the transformer's channels");
      }
    }
  }
  if (!indices.empty()) {
    outputs[indices.begin()->second].at("role").refuse(
        "is neither the prediction nor, of a graph that every step runs, of one of its blocks");
  }
}

}  // namespace intaglio
