#include "backend/nvidia_driver.h"

#include "platform/shared_library.h"

namespace intaglio {

namespace {

struct Driver {
  std::string reason;  // why there is no GPU; empty when there is one
  int gpus = 0;
};

// Calls the driver's C interface through its library, so that building and running without CUDA
// works.
Driver query_driver() {
  const std::string name = platform::kNvidiaDriver;
  void* driver = platform::load_library(name);  // never closed, because it may be in use
  if (!driver) return {.reason = "there is no NVIDIA driver (" + name + " was not found)"};
  const auto init = reinterpret_cast<int (*)(unsigned)>(platform::find_function(driver, "cuInit"));
  const auto count =
      reinterpret_cast<int (*)(int*)>(platform::find_function(driver, "cuDeviceGetCount"));
  const auto error_text = reinterpret_cast<int (*)(int, const char**)>(
      platform::find_function(driver, "cuGetErrorString"));
  if (!init || !count || !error_text) return {.reason = name + " is not an NVIDIA driver"};
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

}  // namespace

std::string gpu_unavailable_reason(int card) {
  static const Driver driver = query_driver();
  if (!driver.reason.empty() || card < driver.gpus) return driver.reason;
  return "the NVIDIA driver finds " + std::to_string(driver.gpus) +
         (driver.gpus == 1 ? " GPU" : " GPUs") + ", which are numbered from 0";
}

}  // namespace intaglio
