#include "bundle/manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "intaglio/error.h"

namespace intaglio {

namespace {

using Json = nlohmann::json;

// A place in bundle.json that knows its own path, so that every message can name it.
class Node {
 public:
  Node(const Json& json, std::string path, const std::string& file)
      : json_(&json), path_(std::move(path)), file_(&file) {}

  [[noreturn]] void refuse(const std::string& why) const {
    throw InputError(*file_ + ": " + (path_.empty() ? "the manifest" : path_) + " " + why +
                     ": export the bundle again");
  }

  bool has(const char* key) const { return json_->is_object() && json_->contains(key); }
  Node at(const char* key) const {
    const Node child(has(key) ? (*json_)[key] : *json_, path_.empty() ? key : path_ + "." + key,
                     *file_);
    if (!has(key)) child.refuse("is missing");
    return child;
  }

  template <typename T>
  T as() const {
    try {
      return json_->get<T>();
    } catch (const Json::exception&) {
      refuse("has the wrong type");
    }
  }
  template <typename T>
  T get(const char* key) const {
    return at(key).as<T>();
  }
  template <typename T>
  void get_if(const char* key, T& value) const {
    if (has(key) && !(*json_)[key].is_null()) value = get<T>(key);
  }
  int positive(const char* key) const {
    const int value = get<int>(key);
    if (value < 1) at(key).refuse("must be at least 1");
    return value;
  }

  std::vector<Node> items() const {
    if (!json_->is_array()) refuse("must be a list");
    std::vector<Node> nodes;
    for (std::size_t i = 0; i < json_->size(); ++i) {
      nodes.emplace_back((*json_)[i], path_ + "[" + std::to_string(i) + "]", *file_);
    }
    return nodes;
  }
  std::vector<std::pair<std::string, Node>> members() const {
    if (!json_->is_object()) refuse("must be an object");
    std::vector<std::pair<std::string, Node>> nodes;
    for (const auto& [key, value] : json_->items())
      nodes.emplace_back(key, Node(value, path_ + "." + key, *file_));
    return nodes;
  }
  std::string file_path(const char* key) const {
    auto path = get<std::string>(key);
    at(key).check_inside(path);
    return path;
  }
  void check_inside(const std::string& path) const {
    const std::filesystem::path p(path);
    const bool climbs = std::find(p.begin(), p.end(), "..") != p.end();
    if (path.empty() || p.is_absolute() || climbs || path.find('\\') != std::string::npos) {
      refuse("names \"" + path + "\", which is not a path inside the bundle");
    }
  }

 private:
  const Json* json_;
  std::string path_;
  const std::string* file_;
};

GraphTensor read_tensor(const Node& node) {
  GraphTensor tensor{
      node.get<std::string>("name"), node.get<std::string>("role"), DType::float32, {}};
  const auto dtype = node.get<std::string>("dtype");
  if (dtype != "float32" && dtype != "int64") node.at("dtype").refuse("must be float32 or int64");
  tensor.dtype = dtype == "int64" ? DType::int64 : DType::float32;
  for (const Json& axis : node.get<std::vector<Json>>("axes")) {
    if (axis.is_number_integer()) {
      tensor.axes.emplace_back(axis.get<std::int64_t>());
    } else if (axis.is_string()) {
      tensor.axes.emplace_back(axis.get<std::string>());
    } else {
      node.at("axes").refuse("holds something that is neither a size nor a name");
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
  ma.channels = node.get<std::vector<int>>("channels");
  node.get_if("ref", ma.ref);
  node.get_if("ratio", ma.ratio);
  ma.found_by = node.get<std::string>("found_by");
  ma.massive = node.get<bool>("massive");
  if (ma.block < 0 || ma.block >= bundle.blocks)
    node.at("block").refuse("is not a block of the transformer");
  for (const int channel : ma.channels) {
    if (channel < 0 || channel >= bundle.channels)
      node.at("channels").refuse("names a channel that the transformer does not have");
  }
  if (!ma.ref.empty() && ma.ref.size() != ma.channels.size())
    node.at("ref").refuse("must have one value per channel");
}

Latent read_latent(const Node& node) {
  return {node.positive("channels"),          node.positive("vae_scale_factor"),
          node.get<double>("scaling_factor"), node.get<double>("shift_factor"),
          node.positive("max_height"),        node.positive("max_width")};
}

SchedulerConfig read_scheduler(const Node& node) {
  SchedulerConfig config;
  config.type = node.get<std::string>("type");
  node.get_if("num_train_timesteps", config.num_train_timesteps);
  node.get_if("shift", config.shift);
  node.get_if("flow_shift", config.shift);
  node.get_if("use_dynamic_shifting", config.use_dynamic_shifting);
  node.get_if("base_shift", config.base_shift);
  node.get_if("max_shift", config.max_shift);
  node.get_if("base_image_seq_len", config.base_image_seq_len);
  node.get_if("max_image_seq_len", config.max_image_seq_len);
  node.get_if("time_shift_type", config.time_shift_type);
  node.get_if("shift_terminal", config.shift_terminal);
  for (const char* key : {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
                          "invert_sigmas", "stochastic_sampling"}) {
    bool on = false;
    node.get_if(key, on);
    // Ignoring it would give other pictures than diffusers does.
    if (on)
      throw InputError("the bundle's scheduler has " + std::string(key) +
                       ", which this version does not sample with: export with it switched off");
  }
  return config;
}

Prompt read_prompt(const Node& node) {
  Prompt prompt;
  prompt.max_sequence_length = node.positive("max_sequence_length");
  prompt.text_width = node.positive("text_width");
  for (const auto& [name, encoder] : node.at("encoders").members()) {
    prompt.encoders[name] = {read_graph(encoder.at("graph")), encoder.file_path("tokenizer"),
                             encoder.positive("max_length")};
  }
  const auto check_names = [&](const Node& where, const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      if (!prompt.encoders.contains(name))
        where.refuse("names the encoder \"" + name + "\", which the bundle does not have");
    }
  };
  for (const Node& item : node.at("text").items()) {
    prompt.text.push_back(
        {item.get<std::vector<std::string>>("encoders"), item.positive("length")});
    check_names(item, prompt.text.back().encoders);
  }
  prompt.pooled = node.get<std::vector<std::string>>("pooled");
  check_names(node.at("pooled"), prompt.pooled);
  return prompt;
}

Defaults read_defaults(const Node& node) {
  Defaults defaults{node.positive("steps"), {}, node.positive("height"), node.positive("width")};
  const auto read_pair = [&](const char* key, double& first, double& second) {
    if (!node.has(key)) return;
    const auto pair = node.get<std::vector<double>>(key);
    if (pair.size() != 2) node.at(key).refuse("must hold two numbers");
    first = pair[0];
    second = pair[1];
  };
  Guidance& guidance = defaults.guidance;
  guidance.cfg_scale = node.get<double>("cfg_scale");
  guidance.dg_scale = node.get<double>("dg_scale");
  read_pair("cfg_window", guidance.cfg_window.start, guidance.cfg_window.end);
  read_pair("dg_window", guidance.dg_window.start, guidance.dg_window.end);
  read_pair("ma_keep", guidance.ma_keep.first, guidance.ma_keep.last);
  return defaults;
}

void check_schema(const Node& root, const std::string& name) {
  const int version = root.get<int>("schema_version");
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
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::parse_error& error) {
    throw InputError(name + " is not valid JSON (" + error.what() +
                     "): copy or export the bundle again");
  }
  const Node root(json, "", name);
  check_schema(root, name);

  Manifest manifest;
  Bundle& bundle = manifest.bundle;
  bundle.producer = root.get<std::map<std::string, std::string>>("producer");
  bundle.name = root.get<std::string>("name");
  bundle.family = root.get<std::string>("family");
  bundle.source = root.get<std::string>("source");
  bundle.license = root.get<std::string>("license");
  bundle.layout = root.get<std::string>("layout");
  if (bundle.layout != "forked" && bundle.layout != "dual")
    root.at("layout").refuse("must be forked or dual");
  bundle.dtype = root.get<std::string>("dtype");
  bundle.prediction_type = root.get<std::string>("prediction_type");
  if (bundle.prediction_type != "velocity")
    root.at("prediction_type").refuse("is one that this version cannot sample");
  read_transformer(root.at("transformer"), bundle);
  read_massive_activations(root.at("massive_activations"), bundle);
  bundle.latent = read_latent(root.at("latent"));
  bundle.scheduler = read_scheduler(root.at("scheduler"));
  bundle.prompt = read_prompt(root.at("prompt"));
  if (root.has("vae_decoder")) bundle.vae_decoder = read_graph(root.at("vae_decoder"));
  if (root.has("vae_encoder")) bundle.vae_encoder = read_graph(root.at("vae_encoder"));
  bundle.defaults = read_defaults(root.at("defaults"));
  validate(bundle.defaults.guidance);
  manifest.files = read_files(root.at("files"));
  check_listed(manifest, root.at("files"));
  return manifest;
}

}  // namespace intaglio
