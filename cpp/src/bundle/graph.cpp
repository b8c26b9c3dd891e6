#include "bundle/graph.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

namespace intaglio {

namespace {

GraphTensor read_tensor(const Node& node) {
  GraphTensor tensor{
      node.get<std::string>("name"), node.get<std::string>("role"), DType::float32, {}};
  check_one_of(node.at("dtype"), {"float32", "int64"});
  if (node.get<std::string>("dtype") == "int64") tensor.dtype = DType::int64;
  for (const Node& axis : node.at("axes").items()) {
    if (axis.is_string()) {
      tensor.axes.emplace_back(axis.as<std::string>());
    } else {
      // All modulations of a large model side by side are a million.
      const int limit = tensor.role == "modulation" ? 1 << 24 : kLargestSize;
      tensor.axes.emplace_back(std::int64_t{axis.positive(limit)});
    }
  }
  return tensor;
}

// The pipeline counts on what the axes of a role are.
void check_axes(const Node& input, bool packed) {
  static const std::map<std::string, std::size_t> more{
      {"text", 3},     {"text_mask", 2}, {"pooled", 2}, {"modulation", 2},
      {"position", 2}, {"context", 3},   {"keep", 2}};
  const auto role = input.get<std::string>("role");
  std::size_t needed = 1;
  if (role == "latent") needed = packed ? 3 : 4;
  if (const auto found = more.find(role); found != more.end()) needed = found->second;
  if (input.at("axes").items().size() == needed) return;
  input.at("axes").refuse("must be " + std::to_string(needed) + " for an input of role " + role);
}

void check_inputs(const Node& node, std::vector<std::string> optional,
                  const std::vector<std::string>& needed, bool packed) {
  optional.insert(optional.end(), needed.begin(), needed.end());
  std::set<std::string> roles;
  for (const Node& input : node.at("inputs").items()) {
    check_one_of(input.at("role"), optional);
    if (!roles.insert(input.get<std::string>("role")).second)
      input.at("role").refuse("is that of two inputs");
  }
  for (const std::string& role : needed) {
    if (!roles.contains(role)) node.at("inputs").refuse("have none of role " + role);
  }
  for (const Node& input : node.at("inputs").items()) check_axes(input, packed);
}

// What one graph makes and the other takes.
void check_made(const Node& node, const Graph& graph, const GraphTensor& made) {
  const GraphTensor& taken = graph.input(made.role);
  if (taken.axes.back() != made.axes.back() || taken.dtype != made.dtype)
    node.at("inputs").refuse("take another " + made.role + " than the graph conditioning makes");
}

}  // namespace

void check_one_of(const Node& node, const std::vector<std::string>& allowed) {
  const auto value = node.as<std::string>();
  if (std::ranges::find(allowed, value) != allowed.end()) return;
  std::string list;
  for (const std::string& name : allowed) list += (list.empty() ? "" : " or ") + name;
  node.refuse("must be " + list);
}

Graph read_graph(const Node& node) {
  Graph graph;
  graph.path = node.file_path("path");
  if (node.has("cpu")) graph.cpu = node.file_path("cpu");
  for (const Node& item : node.at("inputs").items()) graph.inputs.push_back(read_tensor(item));
  for (const Node& item : node.at("outputs").items()) graph.outputs.push_back(read_tensor(item));
  return graph;
}

Graph read_transformer_graph(const Node& node, const TransformerRole& role) {
  Graph graph = read_graph(node);
  // What cpp/src/pipeline/branches.cpp and denoising.cpp can fill.
  std::vector<std::string> optional{"text_mask", "position"};
  std::vector<std::string> needed{"latent"};
  needed.insert(needed.end(), role.op.begin(), role.op.end());
  if (role.conditioning) {
    for (const GraphTensor& made : role.conditioning->outputs) needed.push_back(made.role);
  } else {
    needed.emplace_back("timestep");
    optional.insert(optional.end(), {"text", "pooled", "guidance", "class"});
  }
  check_inputs(node, optional, needed, role.packed);
  if (role.conditioning)
    for (const GraphTensor& made : role.conditioning->outputs) check_made(node, graph, made);
  return graph;
}

Graph read_conditioning_graph(const Node& node) {
  Graph graph = read_graph(node);
  // What cpp/src/pipeline/conditioning.cpp can fill.
  check_inputs(node, {"text", "pooled", "guidance", "class"}, {"timestep"}, false);
  std::map<std::string, std::size_t> axes{{"modulation", 2}};
  if (graph.takes("text")) axes["context"] = 3;
  const auto outputs = node.at("outputs").items();
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const GraphTensor& output = graph.outputs[i];
    const auto wanted = axes.extract(output.role);
    if (wanted.empty())
      outputs[i].at("role").refuse("is nothing that conditioning makes, or twice");
    if (output.axes.size() != wanted.mapped() ||
        !std::holds_alternative<std::int64_t>(output.axes.back()))
      outputs[i].at("axes").refuse("must be " + std::to_string(wanted.mapped()) +
                                   ", the last of a fixed size");
  }
  if (!axes.empty()) node.at("outputs").refuse("have none of role " + axes.begin()->first);
  return graph;
}

void check_outputs(const Node& node, const Graph& graph, const Bundle& bundle) {
  const Node list = node.at("outputs");
  const auto outputs = list.items();
  std::map<std::string, std::size_t> places;  // of roles not yet asked for
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (!places.emplace(graph.outputs[i].role, i).second)
      outputs[i].at("role").refuse("is that of two outputs");
  }
  const auto take = [&](const std::string& role) {
    const auto found = places.extract(role);
    if (found.empty()) list.refuse("have none of role " + role);
    return found.mapped();
  };
  const GraphTensor& prediction = graph.outputs[take("prediction")];
  const bool observed = !places.empty() && &graph == &bundle.transformer();
  for (int block = 0; observed && block < bundle.blocks; ++block) {
    const bool forks = block > bundle.massive_activations.block;
    const auto& rows = (forks ? prediction : graph.input("latent")).axes;
    for (const auto& [role, axes] : {std::pair{"hidden_states_", 3U}, std::pair{"gate_", 2U}}) {
      const std::size_t place = take(role + std::to_string(block));
      const GraphTensor& output = graph.outputs[place];
      check_one_of(outputs[place].at("dtype"), {"float32"});
      if (rows.empty() || output.axes.size() != axes || output.axes.front() != rows.front() ||
          output.axes.back() != decltype(output.axes)::value_type{std::int64_t{bundle.hidden_size}}) {
        outputs[place].at("axes").refuse(
            "must be " + std::to_string(axes) + ", first the rows of the " +
            (forks ? "prediction" : "latent") + " and last the transformer's channels");
      }
    }
  }
  if (!places.empty()) {
    outputs[places.begin()->second].at("role").refuse(
        "is neither the prediction nor, of a graph that every step runs, of one of its blocks");
  }
}

}  // namespace intaglio
