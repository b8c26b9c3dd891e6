#include "backend/onnxruntime_backend.h"

#include <algorithm>
#include <cassert>
#include <exception>
#include <set>
#include <thread>

#include "backend/engine_cache.h"
#include "backend/host_stream.h"
#include "backend/onnxruntime_library.h"
#include "backend/onnxruntime_providers.h"
#include "backend/ort_api.h"
#include "intaglio/bundle.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

[[noreturn]] void fail(const std::string& doing, const Ort::Exception& error) {
  const std::string what = error.what();
  const bool memory = what.find("allocate memory") != std::string::npos ||
                      what.find("bad_alloc") != std::string::npos ||
                      what.find("out of memory") != std::string::npos;  // CUDA's
  if (memory)
    throw OutOfMemoryError(doing + " needs more memory than there is: use a smaller size or batch");
  for (const char* gpu : {"CUDA failure", "CUDA error", "CUDNN failure", "CUBLAS failure"}) {
    if (what.find(gpu) != std::string::npos)
      throw UnavailableError(doing + " failed on the GPU: " + what + "; --device cpu needs none");
  }
  throw InputError(doing + " failed in ONNX Runtime: " + what);
}

// Runs `body`, turning ONNX Runtime's exceptions into ours. Allocates nothing where all goes well.
template <typename Body>
auto translate(const char* doing, const std::string& graph, Body&& body) {
  try {
    return body();
  } catch (const Ort::Exception& error) {
    fail(doing + graph, error);
  } catch (const std::bad_alloc&) {
    throw OutOfMemoryError(doing + graph +
                           " needs more memory than there is: use a smaller size or batch");
  }
}

ONNXTensorElementDataType ort_type(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::int64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case DType::uint8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  }
  assert(false);
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

void check(const std::string& graph, const GraphTensor& declared, const Tensor& tensor) {
  bool fits = tensor.dtype() == declared.dtype && tensor.shape().size() == declared.axes.size();
  for (std::size_t i = 0; fits && i < declared.axes.size(); ++i) {
    const auto* size = std::get_if<std::int64_t>(&declared.axes[i]);
    fits = tensor.dim(i) > 0 && (!size || *size == tensor.dim(i));
  }
  if (!fits) {
    throw InputError(graph + " cannot take " + to_string(declared.role) + " of shape " +
                     to_string(tensor.shape()) + " and type " + name_of(tensor.dtype()) +
                     ": the bundle's graphs contradict its manifest, export it again");
  }
}

class OrtBoundGraph final : public BoundGraph {
 public:
  OrtBoundGraph(std::shared_ptr<Ort::Session> session, const Graph& graph,
                const std::vector<Binding>& inputs, const std::vector<Binding>& outputs)
      : session_(std::move(session)),
        name_(graph.path),
        binding_(*session_),
        inputs_(inputs),
        outputs_(outputs) {
    assert(inputs.size() == graph.inputs.size() && outputs.size() == graph.outputs.size());
    for (Binding& binding : inputs_) {
      const GraphTensor& declared = graph.input(binding.role);
      check(name_, declared, binding.tensor);
      binding_.BindInput(declared.name.c_str(), view(binding.tensor));
    }
    for (Binding& binding : outputs_) {
      const GraphTensor& declared = graph.output(binding.role);
      check(name_, declared, binding.tensor);
      binding_.BindOutput(declared.name.c_str(), view(binding.tensor));
    }
  }

  void run() override {
    translate("running ", name_, [&] { session_->Run(run_options_, binding_); });
  }

 private:
  static Ort::Value view(Tensor& tensor) {
    static const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    return Ort::Value::CreateTensor(memory, tensor.data(), tensor.bytes(), tensor.shape().data(),
                                    tensor.shape().size(), ort_type(tensor.dtype()));
  }

  std::shared_ptr<Ort::Session> session_;
  std::string name_;
  Ort::RunOptions run_options_;
  Ort::IoBinding binding_;
  std::vector<Binding> inputs_, outputs_;  // keep the memory alive
};

class OrtSession final : public Session {
 public:
  OrtSession(std::shared_ptr<Ort::Session> session, Graph graph)
      : session_(std::move(session)), graph_(std::move(graph)) {}

  std::unique_ptr<BoundGraph> bind(Stream&, const std::vector<Binding>& inputs,
                                   const std::vector<Binding>& outputs) const override {
    return translate("binding ", graph_.path, [&] {
      return std::make_unique<OrtBoundGraph>(session_, graph_, inputs, outputs);
    });
  }

 private:
  std::shared_ptr<Ort::Session> session_;
  Graph graph_;
};

int thread_count(const BackendOptions& options) {
  if (options.threads) return options.threads;
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

// The paths of the graphs that run in each step.
std::set<std::string> loop_graphs(const Bundle& bundle) {
  std::set<std::string> paths;
  for (const auto& [name, graph] : bundle.transformer_graphs)
    if (&graph != bundle.conditioning()) paths.insert(graph.path);
  return paths;
}

std::unique_ptr<Session> open(const std::filesystem::path& path, const Graph& graph,
                              const Ort::SessionOptions& options) {
  auto session = std::make_shared<Ort::Session>(onnxruntime_environment(), path.c_str(), options);
  return std::make_unique<OrtSession>(std::move(session), graph);
}

class OrtBackend final : public Backend {
 public:
  OrtBackend(const BackendOptions& options, std::string version, const Bundle& bundle)
      : version_(std::move(version)),
        threads_(thread_count(options)),
        narrow_(bundle.dtype != "float32"),
        // A narrow weight is cast as it is used: nothing constant to pack.
        prepacked_(options.prepack && !narrow_ ? loop_graphs(bundle) : std::set<std::string>{}) {
    if (!ops_library_.empty())
      translate("loading ", ops_library_.string(), [&] { register_ops(ops_library_); });
  }

  std::unique_ptr<Session> load(const std::filesystem::path& bundle_root,
                                const Graph& graph) const override {
    // What graph.path holds has no kernels for the processor, or slower ones.
    const auto path = bundle_root / graph.cpu.value_or(graph.path);
    return translate("loading ", path.string(), [&] {
      Ort::SessionOptions options;
      options.SetIntraOpNumThreads(threads_);
      // A pattern is one more block, taken at the second run (docs/decisions/0012).
      options.DisableMemPattern();
      options.SetGraphOptimizationLevel(GraphOptimizationLevel::ORT_ENABLE_ALL);
      // Packing copies the matrices at load, for quicker steps (docs/decisions/0012).
      const bool prepack = prepacked_.contains(graph.path);
      options.AddConfigEntry("session.disable_prepacking", prepack ? "0" : "1");
      // Either of them would hold a float32 copy of every narrow weight; cast as it is used, what
      // stays is the mapped file. ONNX Runtime has no constants for these names.
      if (narrow_)
        options.AddConfigEntry("optimization.disable_specified_optimizers",
                               "ConstantFolding;FuseFp16InitializerToFp32NodeTransformer");
      // Threads that go on spinning after a run would take the cores from the next graph's.
      options.AddConfigEntry("session.force_spinning_stop", "1");
      // ONNX Runtime prefers its kernel to the function in the graph (docs/decisions/0002).
      if (!ops_library_.empty()) options.RegisterCustomOpsLibrary(ops_library_.c_str(), {});
      return open(path, graph, options);
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
  bool narrow_;                      // weights
  std::set<std::string> prepacked_;  // graphs' paths
  std::filesystem::path ops_library_ = ops_library();
};

class OrtGpuBackend final : public Backend {
 public:
  OrtGpuBackend(std::string device, const BackendOptions& options, std::string version,
                const Bundle& bundle)
      : device_(std::move(device)), version_(std::move(version)), threads_(thread_count(options)) {
    if (device_ == "ort-tensorrt") cache_ = engine_cache(bundle.folder, version_);
  }

  std::unique_ptr<Session> load(const std::filesystem::path& bundle_root,
                                const Graph& graph) const override {
    const auto path = bundle_root / graph.path;
    return translate("loading ", path.string(), [&] {
      Ort::SessionOptions options;
      options.SetIntraOpNumThreads(threads_);  // of what the provider leaves to the processor
      options.SetGraphOptimizationLevel(GraphOptimizationLevel::ORT_ENABLE_ALL);
      // MASuppress stays the function that it is in the graph: our kernel is the processor's, and
      // the hidden states would be copied there and back for it.
      add_provider(options, device_, cache_, graph.path);
      return open(path, graph, options);
    });
  }

  std::unique_ptr<Stream> make_stream() const override { return std::make_unique<HostStream>(); }

  std::string description() const override {
    const bool tensorrt = device_ == "ort-tensorrt";
    return "ONNX Runtime " + version_ + ", " + device_ +
           (!tensorrt        ? ""
            : cache_.empty() ? ", engines not kept (no folder for them can be written)"
                             : ", engines kept in " + cache_.string());
  }

 private:
  std::string device_, version_;
  int threads_;
  std::filesystem::path cache_;
};

}  // namespace

std::shared_ptr<Backend> make_onnxruntime_backend(const std::string& device,
                                                  const BackendOptions& options,
                                                  const Bundle& bundle) {
  const OnnxRuntimeLibrary& library = load_onnxruntime(options.onnxruntime_library);
  if (device == "cpu") return std::make_shared<OrtBackend>(options, library.version, bundle);
  check_provider(device, library);
  return std::make_shared<OrtGpuBackend>(device, options, library.version, bundle);
}

}  // namespace intaglio
