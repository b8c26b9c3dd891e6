#include "bundle/manifest.h"

#include <algorithm>

#include "bundle/graph.h"
#include "bundle/json_node.h"
#include "bundle/prompt.h"
#include "bundle/scheduler.h"
#include "intaglio/error.h"
#include "intaglio/sampling.h"

namespace intaglio {

namespace {

void read_quantized(const Node& node, Bundle& bundle) {
  bundle.quantized = node.get<std::string>("scheme");
  bundle.quantization_errors["forward"] = node.get<double>("error");
  if (!node.has("difference_errors")) return;  // of an older version, or in layout dual
  for (const auto& [branch, error] : node.at("difference_errors").members())
    bundle.quantization_errors[branch] = error.as<double>();
}

void read_transformer(const Node& node, Bundle& bundle) {
  const Node graphs = node.at("graphs");
  auto& read = bundle.transformer_graphs;
  if (graphs.has("conditioning"))
    read["conditioning"] = read_conditioning_graph(graphs.at("conditioning"));
  const auto read_as = [&](const char* name, std::vector<Role> op) {
    read[name] = read_transformer_graph(graphs.at(name), {.op = std::move(op),
                                                          .packed = bundle.latent.packed,
                                                          .conditioning = bundle.conditioning()});
  };
  if (bundle.layout == Layout::forked) {
    read_as("forked", {Role::mask, Role::ref, Role::branch, Role::keep});
  } else {
    read_as("base", {});
    read_as("degraded", {Role::mask, Role::ref, Role::keep});
    if (read["degraded"].inputs.size() != read["base"].inputs.size() + 3)
      graphs.at("degraded").refuse("must take what base takes, and mask, ref and keep");
    for (const GraphTensor& input : read["base"].inputs) {
      if (!read["degraded"].takes(input.role))
        graphs.at("degraded").refuse("does not take " + to_string(input.role) + " as base does");
    }
  }
  bundle.blocks = node.positive("blocks");
  bundle.patch_size = node.positive("patch_size");
  bundle.hidden_size = node.positive("channels");
  if (node.has("quantized")) read_quantized(node.at("quantized"), bundle);
  if (node.has("max_abs")) bundle.max_abs = node.list<double>("max_abs");
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
    if (channel < 0 || channel >= bundle.hidden_size)
      node.at("channels").refuse("names a channel that the transformer does not have");
  }
  if (ma.channels.empty()) node.at("channels").refuse("is empty");
  if (!ma.ref.empty() && ma.ref.size() != ma.channels.size())
    node.at("ref").refuse("must have one value per channel");
}

Latent read_latent(const Node& node) {
  // The decoder's input is divided by it.
  if (node.get<float>("scaling_factor") == 0.0F) node.at("scaling_factor").refuse("must not be 0");
  Latent latent{.channels = node.positive("channels"),
                .vae_scale_factor = node.positive("vae_scale_factor"),
                .scaling_factor = node.get<double>("scaling_factor"),
                .shift_factor = node.get<double>("shift_factor"),
                .max_height = node.positive("max_height"),
                .max_width = node.positive("max_width")};
  node.get_if("packed", latent.packed);
  node.get_if("fixed_size", latent.fixed_size);
  return latent;
}

std::optional<References> read_references(const Node& root, const Bundle& bundle) {
  const bool taken = bundle.transformer().takes(Role::references);
  if (!root.has("references")) {
    if (taken || bundle.transformer().takes(Role::reference_position))
      root.at("transformer").refuse("takes references, about which the manifest says nothing");
    return std::nullopt;
  }
  const Node node = root.at("references");
  if (!taken || !bundle.transformer().takes(Role::reference_position) || !bundle.latent.packed ||
      !bundle.vae_encoder)
    node.refuse("is for packed latents, a VAE encoder and a transformer that takes references");
  References references{.most = node.positive("most"), .time = node.positive("time"), .sizes = {}};
  const auto read_if = [&](const char* key, int& value) {
    if (node.has(key)) value = node.at(key).positive(1 << 30);
  };
  read_if("max_area", references.max_area);
  read_if("min_side", references.min_side);
  read_if("max_aspect", references.max_aspect);
  if (!node.has("sizes")) return references;
  for (const Node& item : node.at("sizes").items()) {
    const auto pair = item.items();
    if (pair.size() != 2) item.refuse("must hold a width and a height");
    references.sizes.emplace_back(pair[0].positive(), pair[1].positive());
  }
  if (references.sizes.empty()) node.at("sizes").refuse("is empty");
  return references;
}

void read_pair(const Node& node, const char* key, double& first, double& second) {
  if (!node.has(key)) return;
  const auto pair = node.list<double>(key);
  if (pair.size() != 2) node.at(key).refuse("must hold two numbers");
  first = pair[0];
  second = pair[1];
}

Defaults read_defaults(const Node& node, const Bundle& bundle) {
  Defaults defaults{.steps = node.positive("steps"),
                    .guidance = {},
                    .height = node.positive("height"),
                    .width = node.positive("width"),
                    .distilled_guidance = {}};
  Guidance& guidance = defaults.guidance;
  guidance.cfg_scale = node.get<double>("cfg_scale");
  guidance.dg_scale = node.get<double>("dg_scale");
  read_pair(node, "cfg_window", guidance.cfg_window.start, guidance.cfg_window.end);
  read_pair(node, "dg_window", guidance.dg_window.start, guidance.dg_window.end);
  read_pair(node, "ma_keep", guidance.ma_keep.first, guidance.ma_keep.last);

  for (const Problem& problem : bundle.check_size(defaults.height, defaults.width))
    node.at(problem.field.c_str()).refuse("cannot be used (" + problem.message + ")");
  if (node.has("distilled_guidance")) {
    defaults.distilled_guidance = node.get<double>("distilled_guidance");
    if (!bundle.input(Role::guidance))
      node.at("distilled_guidance").refuse("is for a transformer with an input of role guidance");
  }
  return defaults;
}

// What is a mistake of the caller in a call is a fault of the file here.
template <typename Check>
void check_values(const Node& node, Check&& check) {
  try {
    check();
  } catch (const UsageError& error) {
    node.refuse(std::string("cannot be used (") + error.what() + ")");
  }
}

std::vector<SkipSchedule> read_skipping(const Node& root) {
  std::vector<SkipSchedule> schedules;
  if (!root.has("skipping")) return schedules;
  for (const Node& node : root.at("skipping").items()) {
    SkipSchedule schedule;
    schedule.steps = node.positive("steps");
    schedule.scheduler = node.get<std::string>("scheduler");
    schedule.tolerance = node.get<double>("tolerance");
    schedule.skipped = node.list<int>("skipped");
    const auto read_if = [&](const char* key, std::optional<double>& value) {
      if (node.has(key)) value = node.get<double>(key);
    };
    read_if("evaluations", schedule.evaluations);
    read_if("median_error", schedule.median_error);
    read_if("largest_error", schedule.largest_error);
    Guidance guidance;
    guidance.skip_steps = schedule.skipped;
    guidance.skip_tolerance = schedule.tolerance;
    check_values(node, [&] { check_guidance(guidance); });
    if (schedule.skipped.empty()) node.at("skipped").refuse("is empty");
    if (const auto problem = skip_steps_problem(schedule.skipped, schedule.steps))
      node.at("skipped").refuse("cannot be used (" + problem->message + ")");
    schedules.push_back(std::move(schedule));
  }
  return schedules;
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

// Before schema 3, `source` counted tokens from 0, and -1 stood for `ref`.
void check_source(const Node& root, const Bundle& bundle, const std::string& name) {
  if (root.get<std::int64_t>("schema_version") >= 3 || !bundle.transformer().takes(Role::source))
    return;
  throw InputError(name + " was written by a version of Intaglio between releases, whose input " +
                   "source has other values: export the bundle again");
}

std::map<std::string, ListedFile> read_files(const Node& node) {
  std::map<std::string, ListedFile> files;
  for (const auto& [path, entry] : node.members()) {
    entry.check_inside(path);
    files[path] = {.bytes = entry.get<std::uint64_t>("bytes"),
                   .sha256 = entry.get<std::string>("sha256")};
  }
  return files;
}

// Every file that the runtime opens has to be among those whose hash is checked.
void check_listed(const Manifest& manifest, const Node& files) {
  const auto check = [&](const std::string& path) {
    if (!manifest.files.contains(path)) files.refuse("does not list " + path);
  };
  const auto check_graph = [&](const Graph& graph) {
    check(graph.path);
    if (graph.cpu) check(*graph.cpu);
    if (graph.decomposed) check(*graph.decomposed);
  };
  const Bundle& bundle = manifest.bundle;
  for (const auto& [name, graph] : bundle.transformer_graphs) check_graph(graph);
  if (bundle.prompt) {
    for (const auto& [name, encoder] : bundle.prompt->encoders) {
      check_graph(encoder.graph);
      check(encoder.tokenizer);
    }
  }
  if (bundle.vae_decoder) check_graph(*bundle.vae_decoder);
  if (bundle.vae_encoder) check_graph(*bundle.vae_encoder);
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
  bundle.layout = read_one_of(root.at("layout"), {Layout::forked, Layout::dual});
  bundle.dtype = root.get<std::string>("dtype");
  bundle.prediction_type =
      read_one_of(root.at("prediction_type"), {PredictionType::velocity, PredictionType::epsilon});
  bundle.latent = read_latent(root.at("latent"));
  if (root.has("cfg_rescale")) {
    const Node node = root.at("cfg_rescale");
    if (node.as<std::string>() != "token") node.refuse("must be token");
    if (!bundle.latent.packed) node.refuse("is for latents that are packed to tokens");
    bundle.cfg_rescale = true;
  }
  read_transformer(root.at("transformer"), bundle);
  check_source(root, bundle, name);
  read_massive_activations(root.at("massive_activations"), bundle);
  for (const auto& [graph, read] : bundle.transformer_graphs) {
    if (&read != bundle.conditioning())
      check_outputs(root.at("transformer").at("graphs").at(graph.c_str()), read, bundle);
  }
  bundle.scheduler = read_scheduler(root, bundle.prediction_type);
  read_condition(root, bundle);
  if (root.has("vae_decoder")) bundle.vae_decoder = read_graph(root.at("vae_decoder"));
  if (root.has("vae_encoder")) bundle.vae_encoder = read_graph(root.at("vae_encoder"));
  bundle.references = read_references(root, bundle);
  bundle.defaults = read_defaults(root.at("defaults"), bundle);
  check_values(root.at("defaults"), [&] { check_guidance(bundle.defaults.guidance); });
  root.get_if("distilled", bundle.distilled);
  bundle.skipping = read_skipping(root);
  check_values(root.at("scheduler"), [&] {
    const int tokens = bundle.token_count(bundle.defaults.height, bundle.defaults.width);
    make_schedule(bundle.scheduler, bundle.defaults.steps, tokens);
  });
  manifest.files = read_files(root.at("files"));
  check_listed(manifest, root.at("files"));
  return manifest;
}

}  // namespace intaglio
