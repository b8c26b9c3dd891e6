#include "backend/tensorrt_backend.h"

#include <map>
#include <mutex>
#include <utility>

#include "backend/cuda_device.h"
#include "backend/cuda_stream.h"
#include "backend/tensorrt_engine.h"
#include "backend/tensorrt_graph.h"
#include "backend/tensorrt_library.h"
#include "bundle/engines.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

// By the engine's names.
std::vector<Binding> named(const Graph& graph, bool input, const std::vector<Binding>& bindings) {
  std::vector<Binding> result;
  for (const Binding& binding : bindings) {
    const GraphTensor& declared = input ? graph.input(binding.role) : graph.output(binding.role);
    if (binding.tensor.dtype() != declared.dtype) {
      throw InputError(graph.path + " cannot take " + binding.role + " of type " +
                       name_of(binding.tensor.dtype()) +
                       ": the bundle's graphs contradict its manifest, export it again");
    }
    result.push_back({declared.name, binding.tensor});
  }
  return result;
}

class TensorRtSession final : public Session {
 public:
  TensorRtSession(const TensorRtLibrary& library, Graph graph, GraphEngines engines)
      : library_(library), graph_(std::move(graph)), engines_(std::move(engines)) {}

  std::unique_ptr<BoundGraph> bind(Stream& stream, const std::vector<Binding>& inputs,
                                   const std::vector<Binding>& outputs) const override {
    const auto given = named(graph_, true, inputs);
    std::map<std::string, Shape> shapes;
    for (const Binding& input : given) shapes[input.role] = input.tensor.shape();
    const GraphEngines::Choice choice = engines_.choose(shapes);
    return std::make_unique<TensorRtGraph>(graph_.path, engine(choice), choice.profile,
                                           dynamic_cast<CudaStream&>(stream), given,
                                           named(graph_, false, outputs));
  }

 private:
  std::shared_ptr<const TensorRtEngine> engine(const GraphEngines::Choice& choice) const {
    const std::scoped_lock lock(mutex_);
    auto& held = held_[choice.component];
    if (!held) held = load_engine(library_, *choice.folder, *choice.component);
    return held;
  }

  const TensorRtLibrary& library_;
  Graph graph_;
  GraphEngines engines_;
  mutable std::mutex mutex_;
  mutable std::map<const EngineComponent*, std::shared_ptr<const TensorRtEngine>> held_;
};

class TensorRtBackend final : public Backend {
 public:
  TensorRtBackend(CudaDevice device, const TensorRtLibrary& library, Engines engines)
      : device_(std::move(device)), library_(library), engines_(std::move(engines)) {}

  std::unique_ptr<Session> load(const std::filesystem::path&, const Graph& graph) const override {
    return std::make_unique<TensorRtSession>(library_, graph, engines_.find(graph));
  }
  std::unique_ptr<Stream> make_stream() const override { return std::make_unique<CudaStream>(); }
  std::string description() const override {
    return library_.title + " " + library_.version + ", " + device_.name + " (" +
           device_.architecture + ")";
  }

 private:
  CudaDevice device_;
  const TensorRtLibrary& library_;
  Engines engines_;
};

// A run that finds one missing would end half-way, where another device could have done it.
void check_all(const Bundle& bundle, const Engines& engines) {
  for (const auto& [name, graph] : bundle.transformer_graphs) engines.find(graph);
  if (bundle.prompt) {
    for (const auto& [name, encoder] : bundle.prompt->encoders) engines.find(encoder.graph);
  }
  if (bundle.vae_decoder) engines.find(*bundle.vae_decoder);
  if (bundle.vae_encoder) engines.find(*bundle.vae_encoder);
}

}  // namespace

bool built_with_tensorrt() { return true; }

// In the order in which a person has to put things right: without a driver neither library nor
// engines help.
std::shared_ptr<Backend> make_tensorrt_backend(const std::string& device,
                                               const BackendOptions& options,
                                               const Bundle& bundle) {
  CudaDevice gpu = find_cuda_device();
  const TensorRtLibrary& library = load_tensorrt(device, options.tensorrt_library);
  Engines engines(bundle, {device, library.version, gpu.architecture});
  check_all(bundle, engines);
  return std::make_shared<TensorRtBackend>(std::move(gpu), library, std::move(engines));
}

}  // namespace intaglio
