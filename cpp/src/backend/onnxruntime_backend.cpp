#include "backend/onnxruntime_backend.h"

#include <algorithm>
#include <cassert>
#include <exception>
#include <initializer_list>
#include <optional>
#include <set>
#include <span>

#include "backend/compiled_cache.h"
#include "backend/engine_session.h"
#include "backend/graph_form.h"
#include "backend/host_stream.h"
#include "backend/nvidia_driver.h"
#include "backend/onnxruntime_library.h"
#include "backend/ort_api.h"
#include "backend/ort_errors.h"
#include "backend/ort_value.h"
#include "backend/placement.h"
#include "backend/provider_memory.h"
#include "backend/providers.h"
#include "bundle/engines.h"
#include "bundle/files.h"
#include "core/usable_cpus.h"
#include "intaglio/bundle.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

// Throws InputError when the tensor does not have the dtype and the axes that the manifest
// declares.
void check_tensor(const std::string& graph, const GraphTensor& declared, const Tensor& tensor) {
  // A run may have no references.
  const bool may_be_empty =
      declared.role == Role::references || declared.role == Role::reference_position;
  bool fits = tensor.dtype() == declared.dtype && tensor.shape().size() == declared.axes.size();
  for (std::size_t i = 0; fits && i < declared.axes.size(); ++i) {
    const auto* size = std::get_if<std::int64_t>(&declared.axes[i]);
    fits = size ? *size == tensor.dim(i) : tensor.dim(i) > 0 || may_be_empty;
  }
  if (!fits) {
    throw InputError(graph + " cannot take " + to_string(declared.role) + " of shape " +
                     to_string(tensor.shape()) + " and type " + name_of(tensor.dtype()) +
                     ": the graphs of the bundle contradict its manifest, so export it again");
  }
}

class OrtBoundGraph final : public BoundGraph {
 public:
  // A provider with memory of its own copies an input in host memory when it is bound, so every run
  // on another device than the CPU binds the inputs again.
  OrtBoundGraph(std::shared_ptr<Ort::Session> session, const Graph& graph, std::string device,
                std::shared_ptr<PlacementProfile> profile, const std::vector<Binding>& inputs,
                const std::vector<Binding>& outputs)
      : session_(std::move(session)),
        profile_(std::move(profile)),
        name_(graph.path),
        device_(std::move(device)),
        copies_inputs_(device_ != "cpu"),
        binding_(*session_),
        inputs_(inputs),
        outputs_(outputs) {
    assert(inputs.size() == graph.inputs.size() && outputs.size() == graph.outputs.size());
    for (Binding& binding : inputs_) {
      const GraphTensor& declared = graph.input(binding.role);
      check_tensor(name_, declared, binding.tensor);
      input_names_.push_back(declared.name);
    }
    if (!copies_inputs_) bind_inputs();
    for (Binding& binding : outputs_) {
      const GraphTensor& declared = graph.output(binding.role);
      check_tensor(name_, declared, binding.tensor);
      bind_output(binding_, declared.name, binding.tensor);
    }
  }

  ~OrtBoundGraph() override {
    // What it is the last to hold is freed here.
    const auto lock = lock_use({.kind = device_});
    binding_.ClearBoundInputs();
    binding_.ClearBoundOutputs();
  }

  void run() override {
    translate_errors("running ", name_, device_, [&] {
      const auto lock = lock_use({.kind = device_});
      if (copies_inputs_) bind_inputs();
      const auto run = [&] { session_->Run(run_options_, binding_); };
      if (profile_) {
        profile_->run(*session_, run);
      } else {
        run();
      }
    });
  }

 private:
  void bind_inputs() {
    for (std::size_t i = 0; i < inputs_.size(); ++i)
      bind_input(binding_, input_names_[i], inputs_[i].tensor);
  }

  std::shared_ptr<Ort::Session> session_;
  std::shared_ptr<PlacementProfile> profile_;  // none on the CPU
  std::string name_, device_;
  bool copies_inputs_;
  std::vector<std::string> input_names_;
  Ort::RunOptions run_options_;
  Ort::IoBinding binding_;
  std::vector<Binding> inputs_, outputs_;  // they keep the bound memory alive
};

class OrtSession final : public Session {
 public:
  OrtSession(std::shared_ptr<Ort::Session> session, Graph graph, std::string device,
             std::shared_ptr<PlacementProfile> profile)
      : profile_(std::move(profile)),
        session_(std::move(session)),
        graph_(std::move(graph)),
        device_(std::move(device)) {}

  std::unique_ptr<BoundGraph> bind(const std::vector<Binding>& inputs,
                                   const std::vector<Binding>& outputs) const override {
    return translate_errors("binding ", graph_.path, device_, [&] {
      return std::make_unique<OrtBoundGraph>(session_, graph_, device_, profile_, inputs, outputs);
    });
  }

 private:
  std::shared_ptr<PlacementProfile>
      profile_;  // whose folder outlives the session that writes there
  std::shared_ptr<Ort::Session> session_;
  Graph graph_;
  std::string device_;
};

int thread_count(const BackendOptions& options) {
  return options.threads ? options.threads : usable_cpus();
}

// Returns the paths of the graphs that run in every step.
std::set<std::string> loop_graphs(const Bundle& bundle) {
  std::set<std::string> paths;
  for (const auto& [name, graph] : bundle.transformer_graphs)
    if (&graph != bundle.conditioning()) paths.insert(graph.path);
  return paths;
}

// Opens a session on a graph and its weights as memory. ONNX Runtime copies the weights then.
std::shared_ptr<Ort::Session> open_from_memory(const BundleFiles& files, const std::string& file,
                                               Ort::SessionOptions& options) {
  std::vector<std::filesystem::path::string_type> names;
  std::vector<char*> weights;
  std::vector<std::size_t> bytes;
  for (const std::string& name : files.weights(file)) {
    const std::span<char> content = files.map(name);
    names.push_back(
        std::filesystem::path(name).lexically_relative(std::filesystem::path(file).parent_path()));
    weights.push_back(content.data());
    bytes.push_back(content.size());
  }
  if (!names.empty()) options.AddExternalInitializersFromFilesInMemory(names, weights, bytes);
  const std::span<char> model = files.map(file);
  return std::make_shared<Ort::Session>(onnxruntime_environment(), model.data(), model.size(),
                                        options);
}

// Opens a session on `file`, which is a graph of the bundle. By its path, ONNX Runtime maps the
// weights, and processes share them. Where the paths lead to other files than those that were
// opened and checked, because the bundle was renamed or replaced, it gets the open files as memory.
std::unique_ptr<Session> open_session(const BundleFiles& files, const std::string& file,
                                      const Graph& graph, Ort::SessionOptions& options,
                                      const std::string& device,
                                      std::shared_ptr<PlacementProfile> profile = nullptr) {
  std::shared_ptr<Ort::Session> session;
  if (files.in_place(file)) {
    session = std::make_shared<Ort::Session>(onnxruntime_environment(), files.path(file).c_str(),
                                             options);
  }
  // The second look is for a bundle that was replaced while the session was opened.
  if (!session || !files.in_place(file)) session = open_from_memory(files, file, options);
  return std::make_unique<OrtSession>(std::move(session), graph, device, std::move(profile));
}

class OrtCpuBackend final : public Backend {
 public:
  OrtCpuBackend(const BackendOptions& options, std::string version, const Bundle& bundle)
      : version_(std::move(version)),
        threads_(thread_count(options)),
        low_precision_(bundle.dtype != "float32"),
        // Low-precision weights are cast to float32 in every run, so there is no constant to pack.
        prepacked_(options.prepack && !low_precision_ ? loop_graphs(bundle)
                                                      : std::set<std::string>{}) {
    if (!ops_library_.empty())
      translate_errors("loading ", ops_library_.string(), "cpu",
                       [&] { register_ops(ops_library_); });
  }

  std::unique_ptr<Session> load(const Bundle& bundle, const Graph& graph) const override {
    const std::string& file = form_for({.kind = "cpu"}, graph);
    return translate_errors("loading ", bundle.files->path(file).string(), "cpu", [&] {
      Ort::SessionOptions options;
      options.SetIntraOpNumThreads(threads_);
      // A memory pattern would allocate one more block at the second run (docs/decisions/0012).
      options.DisableMemPattern();
      options.SetGraphOptimizationLevel(GraphOptimizationLevel::ORT_ENABLE_ALL);
      // Prepacking copies the matrices when the graph is loaded and makes steps faster
      // (docs/decisions/0012).
      const bool prepack = prepacked_.contains(graph.path);
      options.AddConfigEntry("session.disable_prepacking", prepack ? "0" : "1");
      // Each of these two optimizers would keep a float32 copy of every low-precision weight.
      // Without them a weight is cast when it is used, and only the mapped file stays in memory.
      // ONNX Runtime defines no constants for their names.
      if (low_precision_)
        options.AddConfigEntry("optimization.disable_specified_optimizers",
                               "ConstantFolding;FuseFp16InitializerToFp32NodeTransformer");
      // Threads that spin after a run would take cores from the threads of the next graph.
      options.AddConfigEntry("session.force_spinning_stop", "1");
      // With the library registered, ONNX Runtime runs our kernel of MASuppress in place of the
      // function in the graph (docs/decisions/0002).
      if (!ops_library_.empty()) options.RegisterCustomOpsLibrary(ops_library_.c_str(), {});
      return open_session(*bundle.files, file, graph, options, "cpu");
    });
  }

  std::unique_ptr<Stream> make_stream() const override { return std::make_unique<HostStream>(); }

  std::string description() const override {
    return "ONNX Runtime " + version_ + ", cpu, " + std::to_string(threads_) +
           (threads_ == 1 ? " thread" : " threads") +
           (prepacked_.empty() ? "" : ", prepacked weights") +
           (ops_library_.empty() ? "" : ", fused MASuppress");
  }

 private:
  std::string version_;
  int threads_;
  bool low_precision_;               // whether the weights are float16 or bfloat16
  std::set<std::string> prepacked_;  // paths of the graphs whose weights are packed at load
  std::filesystem::path ops_library_ = ops_library();
};

// Runs the graphs with an execution provider of ONNX Runtime other than the CPU's.
class OrtProviderBackend final : public Backend {
 public:
  OrtProviderBackend(DeviceName device, const BackendOptions& options, std::string version,
                     const Bundle& bundle)
      : device_(std::move(device)), version_(std::move(version)) {
    settings_.threads = thread_count(options);
    settings_.precision = options.precision;
    if (device_.kind == "tensorrt-rtx") find_engines(bundle);
    if (!compiles(device_)) return;
    compiled_ = open_compiled(device_.kind + " " + describe_provider(device_), bundle.folder);
    settings_.cache = compiled_.folder;
    if (compiled_.empty) choice.compiling = compiling_text();
  }

  std::unique_ptr<Session> load(const Bundle& bundle, const Graph& graph) const override {
    const auto open = [this, files = bundle.files,
                       graph](const std::filesystem::path& context_model) {
      return open_here(*files, graph, context_model);
    };
    if (device_.kind != "tensorrt-rtx") return open({});
    std::optional<GraphEngines> engines;
    std::string reason = no_engines_;
    try {
      if (engines_ && bundle.files->in_place(graph.path)) engines = engines_->find(graph);
    } catch (const UnavailableError& error) {
      reason = error.what();
    }
    return std::make_unique<EngineSession>(graph, std::move(engines), reason, open, use_);
  }

  std::unique_ptr<Stream> make_stream() const override { return std::make_unique<HostStream>(); }

  std::shared_ptr<DeviceMemory> make_memory() const override {
    // The provider would round the latents as well, in every step.
    if (settings_.precision != "float32") return nullptr;
    // TensorRT would build an engine for each size of each of the loop's small graphs. CUDA runs
    // them in the same memory.
    DeviceName device = device_;
    if (device.kind == "tensorrt") device.kind = "cuda";
    return translate_errors("opening the loop's graphs", "", to_string(device_), [&] {
      return make_provider_memory(
          onnxruntime_environment(), to_string(device_),
          [this, device] { return make_options(device, "loop"); },
          [device] { return lock_use(device); });
    });
  }

  std::string description() const override {
    return "ONNX Runtime " + version_ + ", " + to_string(device_) + " (" +
           describe_provider(device_) + ")" +
           (precisions_of(device_).empty() ? "" : ", computes in " + settings_.precision) +
           (settings_.cache.empty() ? "" : ", compiled in " + settings_.cache.string()) +
           use_->text();
  }

  std::vector<GraphPlacement> placements() const override { return placements_->list(); }

 private:
  Ort::SessionOptions make_options(const DeviceName& device, const std::string& graph) const {
    Ort::SessionOptions options;
    // The threads are for nodes that the provider leaves to the CPU.
    options.SetIntraOpNumThreads(settings_.threads);
    options.SetGraphOptimizationLevel(GraphOptimizationLevel::ORT_ENABLE_ALL);
    // Our kernel of MASuppress is not registered here. It runs on the CPU, so ONNX Runtime would
    // copy the hidden states from the device and back; the function in the graph runs there.
    ProviderSettings settings = settings_;
    settings.graph = graph;
    add_provider(options, device, settings);
    return options;
  }

  void find_engines(const Bundle& bundle) {
    try {
      // The provider says whether an engine is of a version that it runs.
      engines_.emplace(bundle, EngineTarget{device_.kind, "", gpu_architecture(card_of(device_))});
    } catch (const UnavailableError& error) {
      no_engines_ = error.what();
    }
  }

  // Opens the graph in the form for the device, or an engine's context model of it.
  std::unique_ptr<Session> open_here(const BundleFiles& files, const Graph& graph,
                                     const std::filesystem::path& context_model) const {
    const std::string& file = form_for(device_, graph);
    const std::filesystem::path path = context_model.empty() ? files.path(file) : context_model;
    return translate_errors("loading ", path.string(), to_string(device_), [&] {
      Ort::SessionOptions options = make_options(device_, graph.path);
      auto profile = std::make_shared<PlacementProfile>(file, provider_name(device_), placements_);
      profile->ask(options);
      const auto lock = lock_use(device_);
      if (context_model.empty()) {
        return open_session(files, file, graph, options, to_string(device_), std::move(profile));
      }
      // The provider looks for the plan beside the file, so it cannot be opened from memory.
      auto session =
          std::make_shared<Ort::Session>(onnxruntime_environment(), path.c_str(), options);
      return std::unique_ptr<Session>(std::make_unique<OrtSession>(
          std::move(session), graph, to_string(device_), std::move(profile)));
    });
  }

  std::string compiling_text() const {
    const std::string text = "the first run on " + to_string(device_) + " compiles the model";
    return compiled_.folder.empty()
               ? text + ", and so does every other run, because there is no folder to keep it in"
               : text + ", once; `intaglio cache` shows what is kept";
  }

  DeviceName device_;
  std::string version_;
  ProviderSettings settings_;
  std::shared_ptr<Placements> placements_ = std::make_shared<Placements>();
  CompiledEntry compiled_;
  std::optional<Engines> engines_;  // of the bundle, for this GPU
  std::string no_engines_;          // why there are none
  std::shared_ptr<EngineUse> use_ = std::make_shared<EngineUse>();
};

}  // namespace

std::shared_ptr<Backend> make_onnxruntime_backend(const DeviceName& device,
                                                  const BackendOptions& options,
                                                  const Bundle& bundle) {
  const OnnxRuntimeLibrary& library = load_onnxruntime(options.onnxruntime_library);
  if (device.kind == "cpu")
    return std::make_shared<OrtCpuBackend>(options, library.version, bundle);
  require_device(device, library);
  return std::make_shared<OrtProviderBackend>(device, options, library.version, bundle);
}

}  // namespace intaglio
