#include "backend/nvidia_driver.h"

#include <dlfcn.h>

namespace intaglio {

namespace {

// Calls the driver's C interface through dlopen, so that building and running without CUDA works.
std::string query_driver() {
  void* driver =
      dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // never closed, because it may be in use
  if (!driver) return "there is no NVIDIA driver (libcuda.so.1 was not found)";
  const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
  const auto error_text =
      reinterpret_cast<int (*)(int, const char**)>(dlsym(driver, "cuGetErrorString"));
  if (!init || !count || !error_text) return "libcuda.so.1 is not an NVIDIA driver";
  int devices = 0;
  int error = init(0);
  if (error == 0) error = count(&devices);
  if (error != 0) {
    const char* text = nullptr;
    error_text(error, &text);
    return "the NVIDIA driver reports: " +
           (text ? std::string(text) : "error " + std::to_string(error));
  }
  return devices > 0 ? "" : "the NVIDIA driver finds no GPU";
}

}  // namespace

const std::string& gpu_unavailable_reason() {
  static const std::string reason = query_driver();
  return reason;
}

}  // namespace intaglio
