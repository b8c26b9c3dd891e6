#include "bundle/engines.h"

#include <algorithm>
#include <system_error>

#include "bundle/json_node.h"
#include "intaglio/error.h"
#include "intaglio/file.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

constexpr std::int64_t kSchema = 1;
constexpr const char* kRemedy = "run intaglio build again";

std::array<int, 3> read_range(const Node& node) {
  const auto items = node.items();
  if (items.size() != 3) node.refuse("must hold three numbers");
  return {items[0].positive(), items[1].positive(), items[2].positive()};
}

EngineTensor read_tensor(const Node& node, bool input) {
  EngineTensor tensor{node.get<std::string>("name"), node.get<std::string>("dtype"), {}};
  if (!input) return tensor;
  const std::size_t axes = node.at("shape").items().size();
  for (const Node& item : node.at("profiles").items()) {
    ShapeRange range{item.list<std::int64_t>("min"), item.list<std::int64_t>("opt"),
                     item.list<std::int64_t>("max")};
    if (range.min.size() != axes || range.opt.size() != axes || range.max.size() != axes)
      item.refuse("has another number of axes than shape");
    tensor.profiles.push_back(std::move(range));
  }
  return tensor;
}

EngineComponent read_component(const Node& node, std::size_t profiles) {
  EngineComponent component;
  component.key = node.get<std::string>("key");
  component.plan = node.file_path("plan");
  if (node.has("context_model")) component.context_model = node.file_path("context_model");
  component.plan_bytes = node.get<std::uint64_t>("plan_bytes");
  component.graph_sha256 = node.get<std::string>("graph_sha256");
  for (const auto& [path, digest] : node.at("weights_sha256").members())
    component.weights_sha256[path] = digest.as<std::string>();
  for (const Node& item : node.at("inputs").items()) {
    component.inputs.push_back(read_tensor(item, true));
    if (component.inputs.back().profiles.size() != profiles)
      item.at("profiles").refuse("are not as many as the folder's");
  }
  for (const Node& item : node.at("outputs").items())
    component.outputs.push_back(read_tensor(item, false));
  component.weights_bytes = node.get<std::uint64_t>("weights_bytes");
  for (const std::uint64_t bytes : node.list<std::uint64_t>("activation_bytes"))
    component.activation_bytes = std::max(component.activation_bytes, bytes);
  return component;
}

Node::Json parse(const fs::path& path) {
  try {
    return Node::Json::parse(read_file(path));
  } catch (const Node::Json::exception&) {
    throw InputError(path.string() + " is not valid JSON: " + kRemedy);
  }
}

// Returns engines/NAME, as messages call a folder.
std::string shown(const EngineFolder& folder) {
  return "engines/" + folder.path.filename().string();
}

std::string joined(const std::vector<std::string>& parts, const char* between) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : between) + part;
  return text;
}

std::string build_line(const std::string& bundle, const EngineTarget& target) {
  // Plain TensorRT builds for the GPU in the machine.
  return "intaglio build " + bundle + " --backend " + target.backend +
         (target.backend == "tensorrt-rtx" ? " --arch " + target.architecture : "");
}

// Says why `target` cannot run what is in the folder; empty when it can.
std::string differs(const EngineFolder& folder, const EngineTarget& target) {
  if (!target.version.empty() && folder.version != target.version) {
    return shown(folder) + " was built by version " + folder.version + ", and version " +
           target.version + " is to run it";
  }
  if (std::ranges::find(folder.targets, target.architecture) == folder.targets.end()) {
    return shown(folder) + " is for " + joined(folder.targets, " and ") + ", and this GPU is " +
           target.architecture;
  }
  return {};
}

// The folders are sorted, so that the first one that fits is always the same.
std::vector<fs::path> engine_folders(const fs::path& bundle) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(bundle / "engines", error)) {
    if (fs::exists(entry.path() / "engine.json", error)) found.push_back(entry.path());
  }
  std::ranges::sort(found);
  return found;
}

// Says what contradicts the names and types in the manifest; empty when nothing does.
std::string contradiction(const EngineComponent& component, const Graph& graph) {
  const auto check = [](const std::vector<EngineTensor>& built,
                        const std::vector<GraphTensor>& declared) {
    return built.size() == declared.size() &&
           std::ranges::all_of(declared, [&](const GraphTensor& tensor) {
             const auto it = std::ranges::find(built, tensor.name, &EngineTensor::name);
             return it != built.end() && it->dtype == name_of(tensor.dtype);
           });
  };
  if (!check(component.inputs, graph.inputs)) return "other inputs";
  return check(component.outputs, graph.outputs) ? "" : "other outputs";
}

}  // namespace

bool EngineFolder::weight_streaming() const {
  return std::ranges::find(flags, "weight_streaming") != flags.end();
}

EngineFolder read_engine_folder(const fs::path& folder) {
  const std::string name = (folder / "engine.json").string();
  const Node::Json json = parse(name);
  const Node root(json, "", name, kRemedy);
  const auto schema = root.get<std::int64_t>("schema_version");
  if (schema > kSchema) {
    throw InputError(name + " was written by a newer Intaglio (schema " + std::to_string(schema) +
                     ", this version reads up to " + std::to_string(kSchema) +
                     "): update Intaglio, or " + kRemedy + " with this version");
  }
  EngineFolder read;
  read.path = folder;
  read.backend = root.get<std::string>("backend");
  read.version = root.get<std::string>("version");
  read.targets = root.list<std::string>("targets");
  read.flags = root.list<std::string>("flags");
  for (const Node& item : root.at("profiles").items()) {
    read.profiles.push_back({read_range(item.at("batch")), read_range(item.at("height")),
                             read_range(item.at("width"))});
  }
  if (read.profiles.empty()) root.at("profiles").refuse("is empty");
  for (const auto& [path, node] : root.at("components").members())
    read.components[path] = read_component(node, read.profiles.size());
  return read;
}

bool has_engines(const Bundle& bundle, const std::string& backend) {
  return std::ranges::any_of(engine_folders(bundle.folder), [&](const fs::path& folder) {
    return folder.filename().string().starts_with(backend +
                                                  "-sm");  // the target's architecture follows
  });
}

Engines::Engines(const Bundle& bundle, const EngineTarget& target)
    : bundle_(bundle.folder.string()),
      build_(build_line(bundle_, target)),
      pixels_(bundle.latent.vae_scale_factor),
      sha256_(bundle.file_sha256) {
  std::vector<std::string> reasons;
  for (const fs::path& path : engine_folders(bundle.folder)) {
    try {
      auto folder = std::make_shared<EngineFolder>(read_engine_folder(path));
      if (folder->backend != target.backend) continue;
      const std::string reason = intaglio::differs(*folder, target);
      if (reason.empty()) {
        folders_.push_back(std::move(folder));
      } else {
        reasons.push_back(reason);
      }
    } catch (const InputError& error) {
      reasons.emplace_back(error.what());
    }
  }
  // Streaming is for GPUs that cannot hold the weights, so an engine without it comes first.
  std::ranges::stable_sort(folders_, {},
                           [](const auto& folder) { return folder->weight_streaming(); });
  if (!folders_.empty()) return;
  const std::string library = target.backend + (target.version.empty() ? "" : " ") + target.version;
  throw UnavailableError(
      bundle_ + " has no engines that " + library + " can run on this GPU (" + target.architecture +
      ")" + (reasons.empty() ? "" : ": " + joined(reasons, "; ")) + ": run `" + build_ + "`");
}

// Says why the folder has no usable engine of the graph; empty when it has a complete one that was
// built from this graph and these weights.
std::string Engines::differs(const EngineFolder& folder, const Graph& graph) const {
  const std::string where = shown(folder);
  const auto found = folder.components.find(graph.path);
  if (found == folder.components.end()) return where + " has none (was the build interrupted?)";
  const EngineComponent& component = found->second;
  const auto is_bundles = [&](const std::string& path, const std::string& digest) {
    const auto listed = sha256_.find(path);
    return listed != sha256_.end() && listed->second == digest;
  };
  if (!is_bundles(graph.path, component.graph_sha256))
    return where + " was built from another " + graph.path;
  for (const auto& [path, digest] : component.weights_sha256)
    if (!is_bundles(path, digest)) return where + " was built from another " + path;
  if (const std::string what = contradiction(component, graph); !what.empty())
    return where + " has " + what + " than the manifest says";
  std::error_code error;
  const fs::path plan = folder.path / component.plan;
  const auto bytes = fs::file_size(plan, error);
  if (error) return "cannot read " + plan.string() + ": " + error.message();
  if (bytes != component.plan_bytes) {
    return plan.string() + " has " + std::to_string(bytes) + " bytes where engine.json says " +
           std::to_string(component.plan_bytes);
  }
  return {};
}

GraphEngines Engines::find(const Graph& graph) const {
  GraphEngines engines;
  engines.graph_ = graph;
  engines.build_ = build_;
  engines.pixels_ = pixels_;
  std::vector<std::string> reasons;
  for (const auto& folder : folders_) {
    const std::string reason = differs(*folder, graph);
    if (reason.empty()) {
      engines.folders_.push_back(folder);
    } else {
      reasons.push_back(reason);
    }
  }
  if (!engines.folders_.empty()) return engines;
  throw UnavailableError(bundle_ + " has no engine for " + graph.path + ": " +
                         joined(reasons, "; ") + ": run `" + build_ + "`");
}

}  // namespace intaglio
