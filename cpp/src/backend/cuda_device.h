// The GPU that everything runs on, and CUDA's errors as ours.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

namespace intaglio {

// Every call about the GPU is about the first, whichever a thread of the program has chosen for
// itself; that choice is given back.
class UseDevice {
 public:
  UseDevice() {
    if (cudaGetDevice(&before_) == cudaSuccess && before_ != 0) cudaSetDevice(0);
  }
  ~UseDevice() {
    if (before_ != 0) cudaSetDevice(before_);
  }
  UseDevice(const UseDevice&) = delete;
  UseDevice& operator=(const UseDevice&) = delete;

 private:
  int before_ = 0;
};

struct CudaDevice {
  std::string name;          // "NVIDIA GeForce RTX 4090"
  std::string architecture;  // "sm89"
};

// The first GPU that CUDA shows (CUDA_VISIBLE_DEVICES says which). Throws UnavailableError saying
// what is missing: the driver, a newer one, or a GPU.
CudaDevice find_cuda_device();

// Throws for anything but success: OutOfMemoryError, or UnavailableError with CUDA's words.
// `doing` as in "copying latents".
void check_cuda(cudaError_t status, const std::string& doing);

// ", of whose 24.0 GB 1.5 GB are free", or nothing where that is not known.
std::string free_memory();
// "1.5 GB"
std::string format_bytes(std::int64_t bytes);
// Throws OutOfMemoryError with what is needed and what is free when the GPU has less than `bytes`.
void check_device_memory(std::int64_t bytes, const std::string& what);
[[noreturn]] void refuse_device_memory(std::int64_t bytes, const std::string& what);

}  // namespace intaglio
