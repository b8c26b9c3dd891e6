#include <algorithm>
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
  const std::vector<std::string>& precisions = precisions_of(device);
  const std::string refusal =
      "--precision " + name + " does not fit device " + to_string(device) + ", which computes in ";
  if (precisions.empty() && found->second != "float32") {
    throw UsageError(refusal +
                     "the types of the graph: use --device openvino, or export the model with "
                     "--dtype");
  }
  if (!precisions.empty() && !std::ranges::count(precisions, found->second)) {
    std::string list;
    for (const std::string& precision : precisions)
      list += (list.empty() ? "" : " or ") + precision;
    throw UsageError(refusal + list + ": give --precision " + list);
  }
  return found->second;
}

std::shared_ptr<Backend> make_for_device(const DeviceName& device, const BackendOptions& options,
                                         const Bundle& bundle, DeviceChoice choice) {
  auto backend = make_onnxruntime_backend(device, options, bundle);
  choice.device = to_string(device);
  // Graphs for the CPU cast low-precision weights to float32.
  const bool as_the_graph = device.kind != "cpu" && precisions_of(device).empty();
  choice.precision = as_the_graph ? bundle.dtype : options.precision;
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
  const std::string reason = device_unavailable_reason(device, library);
  return {.device = name,
          .works = reason.empty(),
          .details = reason.empty() ? describe_provider(device) : reason};
}

}  // namespace

std::string onnxruntime_version(const BackendOptions& options) {
  return load_onnxruntime(options.onnxruntime_library).version;
}

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
  BackendOptions resolved = options;
  resolved.precision = check_precision(device, options.precision);
  return device.kind == "auto" ? make_for_best_device(resolved, bundle)
                               : make_for_device(device, resolved, bundle, {});
}

}  // namespace intaglio
