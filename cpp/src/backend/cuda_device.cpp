#include "backend/cuda_device.h"

#include <cstddef>
#include <cstdio>

#include "intaglio/error.h"

namespace intaglio {

namespace {

std::string words(cudaError_t status) {
  return std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")";
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

[[noreturn]] void refuse_device(cudaError_t status) {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) {
    throw UnavailableError(
        "there is no NVIDIA driver on this machine: install one for its GPU, or use --device cpu");
  }
  if (status == cudaErrorInsufficientDriver) {
    throw UnavailableError("the NVIDIA driver is for CUDA " + version_text(driver) +
                           " and this Intaglio needs one for CUDA " + version_text(CUDART_VERSION) +
                           ": update the driver, or use --device cpu");
  }
  if (status == cudaErrorNoDevice) {
    throw UnavailableError(
        "the NVIDIA driver shows no GPU (is CUDA_VISIBLE_DEVICES set to none?): use --device cpu");
  }
  throw UnavailableError("the GPU cannot be used: " + words(status) +
                         "; see whether nvidia-smi works, or use --device cpu");
}

}  // namespace

CudaDevice find_cuda_device() {
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count == 0) status = cudaErrorNoDevice;
  cudaDeviceProp properties{};
  if (status == cudaSuccess) status = cudaGetDeviceProperties(&properties, 0);
  if (status != cudaSuccess) {
    cudaGetLastError();  // or the next call would find it
    refuse_device(status);
  }
  return {properties.name,
          "sm" + std::to_string(properties.major) + std::to_string(properties.minor)};
}

void check_cuda(cudaError_t status, const std::string& doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // this one has been seen
  if (status == cudaErrorMemoryAllocation) {
    throw OutOfMemoryError(doing + " needs more memory than the GPU has" + free_memory() +
                           ": use a smaller size or batch");
  }
  throw UnavailableError(doing + " failed on the GPU: " + words(status));
}

std::string format_bytes(std::int64_t bytes) {
  char text[32];
  const double megabytes = static_cast<double>(bytes) / 1e6;
  std::snprintf(text, sizeof text, megabytes < 1000 ? "%.1f MB" : "%.1f GB",
                megabytes < 1000 ? megabytes : megabytes / 1000);
  return text;
}

void check_device_memory(std::int64_t bytes, const std::string& what) {
  std::size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "asking for the GPU's memory");
  if (static_cast<std::size_t>(bytes) > free) refuse_device_memory(bytes, what);
}

std::string free_memory() {
  std::size_t free = 0, total = 0;
  cudaGetLastError();
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return {};
  return ", of whose " + format_bytes(static_cast<std::int64_t>(total)) + " " +
         format_bytes(static_cast<std::int64_t>(free)) + " are free";
}

void refuse_device_memory(std::int64_t bytes, const std::string& what) {
  throw OutOfMemoryError(what + " needs " + format_bytes(bytes) + " of the GPU's memory" +
                         free_memory() +
                         ": use a smaller size or batch, or build the engines with --low-memory");
}

}  // namespace intaglio
