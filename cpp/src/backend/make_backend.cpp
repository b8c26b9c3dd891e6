#include <map>
#include <utility>

#include "backend/device_name.h"
#include "backend/nvidia_driver.h"
#include "backend/onnxruntime_backend.h"
#include "backend/onnxruntime_library.h"
#include "backend/providers.h"
#include "bundle/engines.h"
#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

// Returns the long name of a precision. Throws UsageError when there is no such precision, or when
// the device does not compute in it.
std::string check_precision(const DeviceName& device, const std::string& name) {
  static const std::map<std::string, std::string> names{
      {"fp32", "float32"},    {"bf16", "bfloat16"},     {"fp16", "float16"},
      {"float32", "float32"}, {"bfloat16", "bfloat16"}, {"float16", "float16"}};
  const auto found = names.find(name);
  if (found == names.end()) {
    throw UsageError("there is no precision \"" + name +
                     "\": --precision is float32, bfloat16 or float16");
  }
  if (found->second != "float32" && !has_precisions(device)) {
    throw UsageError("--precision " + name + " does not fit device " + to_string(device) +
                     ", which computes in the types of the graph: use --device openvino, or "
                     "export the model with --dtype");
  }
  return found->second;
}

std::shared_ptr<Backend> make_for_device(const DeviceName& device, const BackendOptions& options,
                                         const Bundle& bundle, DeviceChoice choice) {
  BackendOptions resolved = options;
  resolved.precision = check_precision(device, options.precision);
  auto backend = make_onnxruntime_backend(device, resolved, bundle);
  choice.device = to_string(device);
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
    return make_for_device({.kind = "cpu"}, options, bundle, choice);
  }
  for (const std::string backend : {"tensorrt-rtx", "tensorrt"}) {
    const bool built = has_engines(bundle, backend);
    const std::string reason =
        backend + (built ? ": engines cannot be run yet" : ": the bundle has no engines for it");
    append(choice.reason, reason);
    if (built) append(choice.note, reason);
  }
  load_onnxruntime(options.onnxruntime_library);
  const DeviceName cuda{.kind = "cuda"};
  try {
    return make_for_device(cuda, options, bundle, choice);
  } catch (const UnavailableError& error) {
    append(choice.reason, error.what());
    // A machine with a GPU, or with ONNX Runtime's build for GPUs, is expected to use it, so the
    // user is told why it does not.
    if (gpu_unavailable_reason().empty() || is_installed(cuda)) append(choice.note, error.what());
  }
  return make_for_device({.kind = "cpu"}, options, bundle, choice);
}

DeviceStatus try_device(const std::string& name, const OnnxRuntimeLibrary& library) {
  const DeviceName device = parse_device(name);
  try {
    check_device(device, library);
    return {.device = name, .works = true, .details = describe_provider(device)};
  } catch (const UnavailableError& error) {
    const std::string what = error.what();
    const std::string before = "does not work here: ";
    const std::size_t found = what.find(before);
    return {.device = name,
            .details = found == std::string::npos ? what : what.substr(found + before.size())};
  }
}

}  // namespace

std::vector<DeviceStatus> list_devices(const BackendOptions& options) {
  const OnnxRuntimeLibrary& library = load_onnxruntime(options.onnxruntime_library);
  std::vector<DeviceStatus> all{
      {.device = "cpu", .works = true, .details = "ONNX Runtime " + library.version}};
  for (const char* name : {"openvino:cpu", "openvino:gpu", "openvino:npu", "cuda", "tensorrt",
                           "tensorrt-rtx", "webgpu"})
    all.push_back(try_device(name, library));
  return all;
}

std::shared_ptr<Backend> make_backend(const BackendOptions& options, const Bundle& bundle) {
  if (options.threads < 0 || options.threads > 1024) {
    throw UsageError("--threads must be from 0 (as many as the process may use) to 1024");
  }
  const DeviceName device = parse_device(options.device);
  return device.kind == "auto" ? make_for_best_device(options, bundle)
                               : make_for_device(device, options, bundle, {});
}

}  // namespace intaglio
