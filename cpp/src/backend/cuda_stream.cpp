#include "backend/cuda_stream.h"

#include <cassert>
#include <cstring>

#include "backend/cuda_device.h"
#include "backend/cuda_kernels.h"
#include "core/guided_step.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

float* floats_on_device(Tensor& tensor) {
  assert(tensor.device() == Device::cuda && tensor.dtype() == DType::float32);
  return static_cast<float*>(tensor.data());
}

cudaMemcpyKind kind_of(const Tensor& from, const Tensor& to) {
  if (from.device() == Device::cpu) return cudaMemcpyHostToDevice;
  return to.device() == Device::cpu ? cudaMemcpyDeviceToHost : cudaMemcpyDeviceToDevice;
}

}  // namespace

CudaStream::CudaStream() {
  const UseDevice device;
  cudaStream_t stream = nullptr;
  // Not blocking: the default stream, which others may use, waits for no other.
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  stream_ = {stream, [](cudaStream_t made) { cudaStreamDestroy(made); }};
  int supported = 0;
  check_cuda(cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, 0),
             "asking for the GPU's abilities");
  pools_ = supported != 0;
}

std::shared_ptr<void> CudaStream::allocate_bytes(std::size_t bytes, const std::string& what) {
  const UseDevice device;
  void* memory = nullptr;
  // From the pool where there is one: cudaFree would wait for the work of every other stream.
  const cudaError_t status =
      pools_ ? cudaMallocAsync(&memory, bytes, stream_.get()) : cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation)
    refuse_device_memory(static_cast<std::int64_t>(bytes), what);
  check_cuda(status, "allocating memory for " + what);
  return {memory, [stream = stream_, pools = pools_](void* given) {
            const UseDevice freeing;
            if (pools) {
              cudaFreeAsync(given, stream.get());
            } else {
              cudaFree(given);
            }
          }};
}

std::shared_ptr<void> CudaStream::scratch(std::size_t bytes, const std::string& what) {
  if (bytes > scratch_bytes_) {
    scratch_ = allocate_bytes(bytes, what);
    scratch_bytes_ = bytes;
    wait();  // others may use it on streams of their own
  }
  return scratch_;
}

Tensor CudaStream::allocate(const Shape& shape, DType dtype) {
  ++counts_.allocations;
  const UseDevice device;
  const auto bytes = static_cast<std::size_t>(element_count(shape)) * size_of(dtype);
  // A tensor of no elements has an address, too.
  auto memory = allocate_bytes(bytes > 0 ? bytes : 1, "a tensor of shape " + to_string(shape));
  check_cuda(cudaMemsetAsync(memory.get(), 0, bytes, get()), "clearing memory");
  void* data = memory.get();
  return Tensor(shape, dtype, data, std::move(memory), Device::cuda);
}

void CudaStream::copy(const Tensor& from, Tensor to) {
  assert(from.size() == to.size() && from.dtype() == to.dtype());
  if (from.data() == to.data() || from.bytes() == 0) return;
  ++counts_.copies;
  counts_.copied_bytes += static_cast<std::int64_t>(from.bytes());
  if (from.device() == Device::cpu && to.device() == Device::cpu) {
    std::memmove(to.data(), from.data(), from.bytes());
    return;
  }
  const UseDevice device;
  check_cuda(cudaMemcpyAsync(to.data(), from.data(), from.bytes(), kind_of(from, to), get()),
             "copying a tensor");
  // Host memory may be read for as long as the copy runs, and its owner may not wait.
  if (from.device() == Device::cpu || to.device() == Device::cpu) wait();
}

void CudaStream::fill(Tensor to, float value) {
  const UseDevice device;
  launch_fill(floats_on_device(to), to.size(), value, get());
  check_cuda(cudaPeekAtLastError(), "filling a tensor");
}

void CudaStream::fill_keep(Tensor rows, const Tensor& suppression, float keep) {
  const UseDevice device;
  assert(suppression.device() == Device::cuda && rows.dim(1) == suppression.size());
  launch_fill_keep(floats_on_device(rows), rows.dim(0),
                   static_cast<const float*>(suppression.data()), suppression.size(), keep, get());
  check_cuda(cudaPeekAtLastError(), "filling keep");
}

void CudaStream::step(const GuidedStep& step) {
  const UseDevice device;
  assert(step.x.device() == Device::cuda);
  launch_step(step, get());
  check_cuda(cudaPeekAtLastError(), "the sampler's step");
}

void CudaStream::wait() {
  const UseDevice device;
  check_cuda(cudaStreamSynchronize(get()), "a step");
}

}  // namespace intaglio
