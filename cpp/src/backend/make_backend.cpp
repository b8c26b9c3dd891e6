#include <algorithm>
#include <map>
#include <utility>

#include "backend/device_name.h"
#include "backend/nvidia_driver.h"
#include "backend/onnxruntime_backend.h"
#include "backend/onnxruntime_library.h"
#include "backend/provider_plugin.h"
#include "backend/providers.h"
#include "bundle/engines.h"
#include "core/usable_cpus.h"
#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/error.h"
#include "platform/process.h"

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
    if (device.kind == "cpu") {
      throw UsageError(refusal +
                       "float32: leave it out, or use an OpenVINO device (`intaglio devices` lists "
                       "those that work)");
    }
    throw UsageError(refusal +
                     "the types of the graph: leave it out, or export the model with "
                     "--dtype " +
                     found->second);
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
  choice.compiling = backend->choice.compiling;
  // Graphs for the CPU cast low-precision weights to float32.
  const bool as_the_graph = device.kind != "cpu" && precisions_of(device).empty();
  choice.precision = as_the_graph ? bundle.dtype : options.precision;
  backend->choice = std::move(choice);
  return backend;
}

void append(std::string& list, const std::string& text) {
  list += (list.empty() ? "" : "; ") + text;
}

// Says why the engines that were built for the bundle do not run.
void mention_engines(const Bundle& bundle, DeviceChoice& choice) {
  for (const std::string backend : {"tensorrt-rtx", "tensorrt"}) {
    if (!has_engines(bundle, backend)) continue;
    append(choice.reason, backend + ": give --device " + backend + " to run its engines");
    append(choice.note, backend + ": give --device " + backend + " to run its engines");
  }
}

// Returns the devices that `auto` tries before the CPU, the best first (docs/decisions/0021).
std::vector<DeviceName> preferred_devices(const Bundle& bundle, DeviceChoice& choice) {
  std::vector<DeviceName> devices{
      {.kind = "cuda"}, {.kind = "openvino", .which = "gpu"}, {.kind = "webgpu"}};
  if (bundle.dtype == "float32") {
    append(choice.reason, "tensorrt-rtx would round float32 to TensorFloat-32");
  } else {
    devices.insert(devices.begin(), {.kind = "tensorrt-rtx"});
  }
  return devices;
}

// Whether the bundle has QuantizeLinear and DequantizeLinear for engines (docs/decisions/0023).
bool is_for_engines(const Bundle& bundle) {
  return bundle.quantized == "fp8" || bundle.quantized == "int8-qdq" || bundle.quantized == "fp4";
}

// Whether the device has kernels for the bundle's quantised products, if there are any.
bool has_kernels(const DeviceName& device, const Bundle& bundle) {
  const bool engines = device.kind == "tensorrt-rtx";
  if (is_for_engines(bundle)) return engines || (device.kind == "cpu" && bundle.quantized != "fp4");
  return device.kind == "cpu" || bundle.quantized != "int8-dynamic";
}

UnavailableError no_kernels(const std::string& device, const Bundle& bundle) {
  std::string able = is_for_engines(bundle) ? "tensorrt-rtx" : "cpu";
  if (is_for_engines(bundle) && bundle.quantized != "fp4") able += " or cpu";
  return UnavailableError(device + " has no kernels for the " + bundle.quantized +
                          " weights of the bundle: use --device " + able +
                          ", or export the model again without --quantize");
}

// Says what is in the way of a device that nobody has asked for. A plugin takes 0.1 s to load, so
// those for any GPU are left alone where Linux has none.
Obstacle obstacle_of(const DeviceName& device, const OnnxRuntimeLibrary& library) {
  const bool any_gpu = device.kind == "openvino" || device.kind == "webgpu";
  if (any_gpu && !platform::may_have_gpu()) return {"there is no GPU (/dev/dri)", ""};
  return device_obstacle(device, library);
}

std::shared_ptr<Backend> make_for_best_device(const BackendOptions& options, const Bundle& bundle) {
  DeviceChoice choice;
  const DeviceName cpu{.kind = "cpu"};
  if (!bundle.quantized.empty() && !is_for_engines(bundle)) {
    choice.reason = "the bundle has " + bundle.quantized + " weights, which run on the CPU only";
    return make_for_device(cpu, options, bundle, choice);
  }
  mention_engines(bundle, choice);
  const OnnxRuntimeLibrary& library = load_onnxruntime(options.onnxruntime_library);
  for (const DeviceName& device : preferred_devices(bundle, choice)) {
    if (!has_kernels(device, bundle)) continue;
    const Obstacle obstacle = obstacle_of(device, library);
    if (obstacle.reason.empty()) return make_for_device(device, options, bundle, choice);
    const std::string why = to_string(device) + ": " + describe(obstacle);
    append(choice.reason, why);
    // Who has one of NVIDIA's GPUs, or has installed what runs on them, expects it to be used.
    const bool nvidia = device.kind == "cuda" || device.kind == "tensorrt-rtx";
    if (nvidia && (gpu_unavailable_reason().empty() || is_installed(device)))
      append(choice.note, why);
  }
  if (!has_kernels(cpu, bundle)) throw no_kernels("the CPU", bundle);
  return make_for_device(cpu, options, bundle, choice);
}

}  // namespace

std::string onnxruntime_version(const BackendOptions& options) {
  return load_onnxruntime(options.onnxruntime_library).version;
}

std::shared_ptr<Backend> make_backend(const BackendOptions& options, const Bundle& bundle) {
  const int usable = usable_cpus();
  if (options.threads < 0 || options.threads > usable) {
    throw UsageError("--threads " + std::to_string(options.threads) + ": give a number from 1 to " +
                     std::to_string(usable) +
                     ", the processors that this process may use, or 0 for all of them");
  }
  const DeviceName device = parse_device(options.device);
  BackendOptions resolved = options;
  const OnnxRuntimeLibrary& library = load_onnxruntime(options.onnxruntime_library);
  use_plugin_library(options.provider_library);
  if (device.kind != "auto" && !has_kernels(device, bundle))
    throw no_kernels("device " + to_string(device), bundle);
  // Whoever has no NPU should not have to choose the only precision of NPUs first.
  if (device.which == "npu") require_device(device, library);
  resolved.precision = check_precision(device, options.precision);
  return device.kind == "auto" ? make_for_best_device(resolved, bundle)
                               : make_for_device(device, resolved, bundle, {});
}

}  // namespace intaglio
