#include "backend/nvidia_driver.h"

#include <dlfcn.h>

namespace intaglio {

namespace {

// The driver is opened at run time and asked through its C interface, so nothing here needs CUDA.
std::string ask_driver() {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // never closed: it is in use
  if (!driver) return "there is no NVIDIA driver (libcuda.so.1 is not found)";
  const auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
  const auto name = reinterpret_cast<int (*)(int, const char**)>(dlsym(driver, "cuGetErrorString"));
  if (!init || !count || !name) return "libcuda.so.1 is not an NVIDIA driver";
  int devices = 0;
  int error = init(0);
  if (error == 0) error = count(&devices);
  if (error != 0) {
    const char* text = nullptr;
    name(error, &text);
    return "the NVIDIA driver says: " +
           (text ? std::string(text) : "error " + std::to_string(error));
  }
  return devices > 0 ? "" : "the NVIDIA driver finds no GPU";
}

}  // namespace

const std::string& why_no_gpu() {
  static const std::string why = ask_driver();
  return why;
}

}  // namespace intaglio
