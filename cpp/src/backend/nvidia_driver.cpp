#include "backend/nvidia_driver.h"

#include <dlfcn.h>

namespace intaglio {

namespace {

struct Driver {
  std::string reason;  // why there is no GPU; empty when there is one
  int gpus = 0;
};

// Calls the driver's C interface through dlopen, so that building and running without CUDA works.
Driver query_driver() {
  void* driver =
      dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // never closed, because it may be in use
  if (!driver) return {.reason = "there is no NVIDIA driver (libcuda.so.1 was not found)"};
  const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
  const auto error_text =
      reinterpret_cast<int (*)(int, const char**)>(dlsym(driver, "cuGetErrorString"));
  if (!init || !count || !error_text) return {.reason = "libcuda.so.1 is not an NVIDIA driver"};
  int gpus = 0;
  int error = init(0);
  if (error == 0) error = count(&gpus);
  if (error != 0) {
    const char* text = nullptr;
    error_text(error, &text);
    return {.reason = "the NVIDIA driver reports: " +
                      (text ? std::string(text) : "error " + std::to_string(error))};
  }
  return {.reason = gpus > 0 ? "" : "the NVIDIA driver finds no GPU", .gpus = gpus};
}

// Values of CUdevice_attribute for the compute capability.
constexpr int kMajor = 75, kMinor = 76;

}  // namespace

std::string gpu_architecture(int card) {
  if (!gpu_unavailable_reason(card).empty()) return {};
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  if (!driver) return {};
  const auto attribute =
      reinterpret_cast<int (*)(int*, int, int)>(dlsym(driver, "cuDeviceGetAttribute"));
  int major = 0, minor = 0;
  if (!attribute || attribute(&major, kMajor, card) || attribute(&minor, kMinor, card)) return {};
  return "sm" + std::to_string(major) + std::to_string(minor);
}

std::string gpu_unavailable_reason(int card) {
  static const Driver driver = query_driver();
  if (!driver.reason.empty() || card < driver.gpus) return driver.reason;
  return "the NVIDIA driver finds " + std::to_string(driver.gpus) +
         (driver.gpus == 1 ? " GPU" : " GPUs") + ", which are numbered from 0";
}

}  // namespace intaglio
