#include <algorithm>
#include <utility>

#include "backend/nvidia_driver.h"
#include "backend/onnxruntime_backend.h"
#include "backend/onnxruntime_library.h"
#include "backend/onnxruntime_providers.h"
#include "bundle/engines.h"
#include "intaglio/backend.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

bool is_tensorrt(const std::string& device) {
  return device == "tensorrt" || device == "tensorrt-rtx";
}

[[noreturn]] void refuse_engines(const std::string& device) {
  throw UnavailableError("device " + device +
                         " cannot run in this version of Intaglio, which builds TensorRT engines "
                         "but does not run them yet: use --device cpu, or --device cuda, which "
                         "has never been run on a GPU");
}

std::shared_ptr<Backend> make_for_device(const std::string& device, const BackendOptions& options,
                                         const Bundle& bundle, DeviceChoice choice) {
  if (is_tensorrt(device)) refuse_engines(device);
  auto backend = make_onnxruntime_backend(device, options, bundle);
  choice.device = device;
  backend->choice = std::move(choice);
  return backend;
}

void append(std::string& list, const std::string& text) {
  list += (list.empty() ? "" : "; ") + text;
}

std::shared_ptr<Backend> make_for_best_device(const BackendOptions& options, const Bundle& bundle) {
  DeviceChoice choice;
  if (!bundle.quantized.empty()) {
    choice.reason = "the bundle has " + bundle.quantized + " weights, which run on the CPU only";
    return make_for_device("cpu", options, bundle, choice);
  }
  for (const std::string device : {"tensorrt-rtx", "tensorrt"}) {
    const bool built = has_engines(bundle, device);
    const std::string reason =
        device + (built ? ": engines cannot be run yet" : ": the bundle has no engines for it");
    append(choice.reason, reason);
    if (built) append(choice.note, reason);
  }
  load_onnxruntime(options.onnxruntime_library);
  try {
    return make_for_device("cuda", options, bundle, choice);
  } catch (const UnavailableError& error) {
    append(choice.reason, error.what());
    // A machine with a GPU, or with ONNX Runtime's build for GPUs, is expected to use it, so the
    // user is told why it does not.
    if (gpu_unavailable_reason().empty() || has_provider("cuda")) append(choice.note, error.what());
  }
  return make_for_device("cpu", options, bundle, choice);
}

}  // namespace

const std::vector<std::string>& device_names() {
  static const std::vector<std::string> names{"auto",         "cpu",      "cuda",
                                              "ort-tensorrt", "tensorrt", "tensorrt-rtx"};
  return names;
}

std::shared_ptr<Backend> make_backend(const BackendOptions& options, const Bundle& bundle) {
  if (options.threads < 0 || options.threads > 1024) {
    throw UsageError("--threads must be from 0 (as many as the process may use) to 1024");
  }
  if (std::ranges::find(device_names(), options.device) == device_names().end()) {
    std::string names;
    for (const std::string& name : device_names())
      if (!is_tensorrt(name)) names += (names.empty() ? "" : ", ") + name;
    throw UsageError("there is no device \"" + options.device + "\": --device is one of " + names);
  }
  return options.device == "auto" ? make_for_best_device(options, bundle)
                                  : make_for_device(options.device, options, bundle, {});
}

}  // namespace intaglio
