#include "backend/tensorrt_graph.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "backend/cuda_device.h"
#include "intaglio/error.h"

namespace intaglio {

TensorRtGraph::TensorRtGraph(std::string name, std::shared_ptr<const TensorRtEngine> engine,
                             int profile, CudaStream& stream, const std::vector<Binding>& inputs,
                             const std::vector<Binding>& outputs)
    : name_(std::move(name)),
      engine_(std::move(engine)),
      stream_(stream),
      context_(engine_->make_context()) {
  const UseDevice device;
  const TensorRtApi& api = engine_->api();
  if (!call<bool>(api.context.set_profile, profile, stream_.get())) refuse("choosing a profile");
  for (const Binding& input : inputs) {
    inputs_.push_back(bind(input));
    set_shape(inputs_.back());
  }
  if (call<std::int32_t>(api.context.infer_shapes, 0, static_cast<const char**>(nullptr)) != 0)
    refuse("working out shapes");
  for (const Binding& output : outputs) {
    outputs_.push_back(bind(output));
    check_shape(outputs_.back());
  }
  give_memory();
}

TensorRtGraph::WaitsAtTheEnd::~WaitsAtTheEnd() {
  const UseDevice device;
  cudaStreamSynchronize(stream.get());
}

void TensorRtGraph::refuse(const std::string& doing) const {
  refuse_tensorrt(doing + " of " + name_);
}

TensorRtGraph::Bound TensorRtGraph::bind(const Binding& binding) {
  Bound bound{binding.role, binding.tensor, {}};
  // TensorRT wants addresses at multiples of 256 bytes, where the rows of a tensor need not begin.
  const bool aligned = reinterpret_cast<std::uintptr_t>(bound.tensor.data()) % 256 == 0;
  if (bound.tensor.device() == Device::cpu || !aligned)
    bound.staged = stream_.allocate(bound.tensor.shape(), bound.tensor.dtype());
  Tensor& on_gpu = bound.staged.defined() ? bound.staged : bound.tensor;
  if (!call<bool>(engine_->api().context.set_address, bound.name.c_str(), on_gpu.data()))
    refuse("binding " + bound.name);
  return bound;
}

void TensorRtGraph::set_shape(const Bound& input) {
  const Shape& shape = input.tensor.shape();
  trt::Dims dims{static_cast<std::int32_t>(shape.size()), {}};
  std::ranges::copy(shape, dims.sizes);
  const trt::Dims& given = dims;
  // By reference, which is a pointer to the callee.
  if (!call<bool>(engine_->api().context.set_input_shape, input.name.c_str(), &given))
    refuse("setting the shape " + to_string(shape) + " of " + input.name);
}

void TensorRtGraph::check_shape(const Bound& output) const {
  const auto dims = call<trt::Dims>(engine_->api().context.tensor_shape, output.name.c_str());
  const Shape shape(dims.sizes, dims.sizes + std::clamp(dims.count, 0, 8));
  if (shape == output.tensor.shape()) return;
  throw InputError(name_ + " gives " + output.name + " the shape " + to_string(shape) +
                   " and not " + to_string(output.tensor.shape()) +
                   ": the bundle's graphs contradict its manifest, export it again");
}

void TensorRtGraph::give_memory() {
  const TensorRtApi& api = engine_->api();
  forget_tensorrt_errors();
  const auto bytes = call<std::size_t>(api.context.update_memory_size);
  if (bytes == 0 && tensorrt_complains()) refuse("working out the memory");
  if (bytes == 0) return;
  memory_ = stream_.scratch(bytes, name_);
  call<void>(api.context.set_memory, memory_.get(), static_cast<std::int64_t>(bytes));
}

void TensorRtGraph::enqueue() {
  forget_tensorrt_errors();
  if (!call<bool>(engine_->api().context.enqueue, stream_.get())) refuse("a run");
}

bool TensorRtGraph::capturable() const {
  // TensorRT-RTX records by itself. Weights that are streamed come from the host, by decisions that
  // a graph cannot take.
  return !capture_failed_ && !engine_->records_graphs() && !engine_->weight_streaming();
}

// Records one run for launching at once. Whatever goes wrong leaves the plain way.
bool TensorRtGraph::capture() {
  cudaStream_t stream = stream_.get();
  if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  const bool enqueued = call<bool>(engine_->api().context.enqueue, stream);
  cudaGraph_t graph = nullptr;
  const bool ended = cudaStreamEndCapture(stream, &graph) == cudaSuccess;
  cudaGraphExec_t made = nullptr;
  if (enqueued && ended && graph && cudaGraphInstantiate(&made, graph, 0) == cudaSuccess)
    captured_.reset(made);
  if (graph) cudaGraphDestroy(graph);
  forget_tensorrt_errors();
  cudaGetLastError();
  return captured_ != nullptr;
}

void TensorRtGraph::run() {
  const UseDevice device;
  for (const Bound& input : inputs_)
    if (input.staged.defined()) stream_.copy(input.tensor, input.staged);
  // The first run does what is done once, and shows errors as what they are.
  if (runs_ == 1 && capturable()) capture_failed_ = !capture();
  ++runs_;
  if (captured_) {
    check_cuda(cudaGraphLaunch(captured_.get(), stream_.get()), "running " + name_);
  } else {
    enqueue();
  }
  for (const Bound& output : outputs_)
    if (output.staged.defined()) stream_.copy(output.staged, output.tensor);
}

}  // namespace intaglio
