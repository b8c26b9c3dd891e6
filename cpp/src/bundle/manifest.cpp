#include "bundle/manifest.h"

#include <algorithm>

#include "bundle/json_node.h"
#include "bundle/scheduler.h"
#include "intaglio/error.h"
#include "intaglio/sampling.h"

namespace intaglio {

namespace {

void check_one_of(const Node& node, const std::vector<std::string>& allowed) {
  const auto value = node.as<std::string>();
  if (std::ranges::find(allowed, value) != allowed.end()) return;
  std::string list;
  for (const std::string& name : allowed) list += (list.empty() ? "" : " or ") + name;
  node.refuse("must be " + list);
}

GraphTensor read_tensor(const Node& node) {
  GraphTensor tensor{
      node.get<std::string>("name"), node.get<std::string>("role"), DType::float32, {}};
  check_one_of(node.at("dtype"), {"float32", "int64"});
  if (node.get<std::string>("dtype") == "int64") tensor.dtype = DType::int64;
  for (const Node& axis : node.at("axes").items()) {
    if (axis.is_string()) {
      tensor.axes.emplace_back(axis.as<std::string>());
    } else {
      tensor.axes.emplace_back(std::int64_t{axis.positive()});
    }
  }
  return tensor;
}

Graph read_graph(const Node& node) {
  Graph graph{node.file_path("path"), {}, {}};
  for (const Node& item : node.at("inputs").items()) graph.inputs.push_back(read_tensor(item));
  for (const Node& item : node.at("outputs").items()) graph.outputs.push_back(read_tensor(item));
  return graph;
}

void read_transformer(const Node& node, Bundle& bundle) {
  for (const auto& [name, graph] : node.at("graphs").members())
    bundle.transformer_graphs[name] = read_graph(graph);
  bundle.blocks = node.positive("blocks");
  bundle.patch_size = node.positive("patch_size");
  bundle.channels = node.positive("channels");
  const std::vector<std::string> needed = bundle.layout == "forked"
                                              ? std::vector<std::string>{"forked"}
                                              : std::vector<std::string>{"base", "degraded"};
  for (const std::string& name : needed) node.at("graphs").at(name.c_str());
}

void read_massive_activations(const Node& node, Bundle& bundle) {
  MassiveActivations& ma = bundle.massive_activations;
  ma.block = node.get<int>("block");
  ma.channels = node.list<int>("channels");
  if (node.has("ref")) ma.ref = node.list<float>("ref");
  if (node.has("ratio")) ma.ratio = node.list<double>("ratio");
  ma.found_by = node.get<std::string>("found_by");
  ma.massive = node.get<bool>("massive");
  if (ma.block < 0 || ma.block >= bundle.blocks)
    node.at("block").refuse("is not a block of the transformer");
  for (const int channel : ma.channels) {
    if (channel < 0 || channel >= bundle.channels)
      node.at("channels").refuse("names a channel that the transformer does not have");
  }
  if (ma.channels.empty()) node.at("channels").refuse("is empty");
  if (!ma.ref.empty() && ma.ref.size() != ma.channels.size())
    node.at("ref").refuse("must have one value per channel");
}

Latent read_latent(const Node& node) {
  // The decoder's input is divided by it.
  if (node.get<float>("scaling_factor") == 0.0F) node.at("scaling_factor").refuse("must not be 0");
  return {node.positive("channels"),          node.positive("vae_scale_factor"),
          node.get<double>("scaling_factor"), node.get<double>("shift_factor"),
          node.positive("max_height"),        node.positive("max_width")};
}

// Channels that the encoder gives for `role`, whose tensor the runtime has to make room for.
int width_of(const Node& node, const TextEncoder& encoder, const std::string& role) {
  const auto& outputs = encoder.graph.outputs;
  const auto it = std::ranges::find(outputs, role, &GraphTensor::role);
  if (it == outputs.end()) node.refuse("names an encoder that has no output of role " + role);
  const auto* width = it->axes.empty() ? nullptr : std::get_if<std::int64_t>(&it->axes.back());
  if (!width) node.refuse("names an encoder whose " + role + " has no fixed last axis");
  return static_cast<int>(*width);
}

TextEncoder read_encoder(const Node& node) {
  TextEncoder encoder{read_graph(node.at("graph")), node.file_path("tokenizer"),
                      node.positive("max_length")};
  // The two special tokens need a place each.
  if (encoder.max_length < 2) node.at("max_length").refuse("must be at least 2");
  for (const Node& output : node.at("graph").at("outputs").items()) {
    check_one_of(output.at("role"), {"hidden", "pooled"});
    width_of(output, encoder, output.get<std::string>("role"));
  }
  return encoder;
}

const TextEncoder& find_encoder(const Node& node, const Prompt& prompt) {
  const auto it = prompt.encoders.find(node.as<std::string>());
  if (it == prompt.encoders.end()) node.refuse("names an encoder that the bundle does not have");
  return it->second;
}

TextSegment read_segment(const Node& node, const Prompt& prompt) {
  TextSegment segment{node.list<std::string>("encoders"), node.positive("length")};
  int width = 0;
  for (const Node& name : node.at("encoders").items()) {
    const TextEncoder& encoder = find_encoder(name, prompt);
    width += width_of(name, encoder, "hidden");
    if (segment.length > encoder.max_length) {
      node.at("length").refuse("is longer than what its encoders give");
    }
  }
  if (width > prompt.text_width) node.at("encoders").refuse("give more channels than text_width");
  return segment;
}

Prompt read_prompt(const Node& node) {
  Prompt prompt;
  prompt.max_sequence_length = node.positive("max_sequence_length");
  prompt.text_width = node.positive("text_width");
  for (const auto& [name, encoder] : node.at("encoders").members()) {
    prompt.encoders[name] = read_encoder(encoder);
  }
  for (const Node& item : node.at("text").items()) {
    prompt.text.push_back(read_segment(item, prompt));
  }
  if (prompt.text.empty()) node.at("text").refuse("is empty");
  prompt.pooled = node.list<std::string>("pooled");
  for (const Node& name : node.at("pooled").items()) {
    width_of(name, find_encoder(name, prompt), "pooled");
  }
  return prompt;
}

void read_pair(const Node& node, const char* key, double& first, double& second) {
  if (!node.has(key)) return;
  const auto pair = node.list<double>(key);
  if (pair.size() != 2) node.at(key).refuse("must hold two numbers");
  first = pair[0];
  second = pair[1];
}

Defaults read_defaults(const Node& node, const Bundle& bundle) {
  Defaults defaults{node.positive("steps"), {}, node.positive("height"), node.positive("width")};
  Guidance& guidance = defaults.guidance;
  guidance.cfg_scale = node.get<double>("cfg_scale");
  guidance.dg_scale = node.get<double>("dg_scale");
  read_pair(node, "cfg_window", guidance.cfg_window.start, guidance.cfg_window.end);
  read_pair(node, "dg_window", guidance.dg_window.start, guidance.dg_window.end);
  read_pair(node, "ma_keep", guidance.ma_keep.first, guidance.ma_keep.last);

  const int unit = bundle.latent.vae_scale_factor * bundle.patch_size;
  const auto check = [&](const char* key, int size, int largest) {
    if (size % unit != 0 || size > largest) {
      node.at(key).refuse("must be a multiple of " + std::to_string(unit) + " up to " +
                          std::to_string(largest));
    }
  };
  check("height", defaults.height, bundle.latent.max_height);
  check("width", defaults.width, bundle.latent.max_width);
  return defaults;
}

// What would be a caller's mistake in a call is the file's fault here.
template <typename Check>
void check_values(const Node& node, Check&& check) {
  try {
    check();
  } catch (const UsageError& error) {
    node.refuse(std::string("cannot be used (") + error.what() + ")");
  }
}

void check_schema(const Node& root, const std::string& name) {
  const auto version = root.get<std::int64_t>("schema_version");
  if (version > supported_schema) {
    throw InputError(name + " was written by a newer Intaglio (schema " + std::to_string(version) +
                     ", this version reads up to " + std::to_string(supported_schema) +
                     "): update Intaglio, or export the bundle again with this version");
  }
  if (version < 1) root.at("schema_version").refuse("must be at least 1");
}

std::map<std::string, ListedFile> read_files(const Node& node) {
  std::map<std::string, ListedFile> files;
  for (const auto& [path, entry] : node.members()) {
    entry.check_inside(path);
    files[path] = {entry.get<std::uint64_t>("bytes"), entry.get<std::string>("sha256")};
  }
  return files;
}

// Every file the runtime will open has to be among those whose hash is checked.
void check_listed(const Manifest& manifest, const Node& files) {
  const auto check = [&](const std::string& path) {
    if (!manifest.files.contains(path)) files.refuse("does not list " + path);
  };
  const Bundle& bundle = manifest.bundle;
  for (const auto& [name, graph] : bundle.transformer_graphs) check(graph.path);
  for (const auto& [name, encoder] : bundle.prompt.encoders) {
    check(encoder.graph.path);
    check(encoder.tokenizer);
  }
  if (bundle.vae_decoder) check(bundle.vae_decoder->path);
  if (bundle.vae_encoder) check(bundle.vae_encoder->path);
}

}  // namespace

Manifest parse_manifest(std::string_view text, const std::string& name) {
  Node::Json json;
  try {
    json = Node::Json::parse(text);
  } catch (const Node::Json::parse_error& error) {
    throw InputError(name + " is not valid JSON at byte " + std::to_string(error.byte) +
                     ": copy or export the bundle again");
  } catch (const Node::Json::exception&) {
    throw InputError(name + " holds a number that is too large: copy or export the bundle again");
  }
  const Node root(json, "", name);
  check_schema(root, name);

  Manifest manifest;
  Bundle& bundle = manifest.bundle;
  for (const auto& [part, version] : root.at("producer").members()) {
    bundle.producer[part] = version.as<std::string>();
  }
  bundle.name = root.get<std::string>("name");
  bundle.family = root.get<std::string>("family");
  bundle.source = root.get<std::string>("source");
  bundle.license = root.get<std::string>("license");
  bundle.layout = root.get<std::string>("layout");
  check_one_of(root.at("layout"), {"forked", "dual"});
  bundle.dtype = root.get<std::string>("dtype");
  bundle.prediction_type = root.get<std::string>("prediction_type");
  check_one_of(root.at("prediction_type"), {"velocity", "epsilon"});
  read_transformer(root.at("transformer"), bundle);
  read_massive_activations(root.at("massive_activations"), bundle);
  bundle.latent = read_latent(root.at("latent"));
  bundle.scheduler = read_scheduler(root, bundle.prediction_type);
  bundle.prompt = read_prompt(root.at("prompt"));
  if (root.has("vae_decoder")) bundle.vae_decoder = read_graph(root.at("vae_decoder"));
  if (root.has("vae_encoder")) bundle.vae_encoder = read_graph(root.at("vae_encoder"));
  bundle.defaults = read_defaults(root.at("defaults"), bundle);
  check_values(root.at("defaults"), [&] { validate(bundle.defaults.guidance); });
  check_values(root.at("scheduler"), [&] {
    const int unit = bundle.latent.vae_scale_factor * bundle.patch_size;
    const int tokens = (bundle.defaults.height / unit) * (bundle.defaults.width / unit);
    make_schedule(bundle.scheduler, bundle.defaults.steps, tokens);
  });
  manifest.files = read_files(root.at("files"));
  check_listed(manifest, root.at("files"));
  return manifest;
}

}  // namespace intaglio
