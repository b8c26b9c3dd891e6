#include "backend/providers.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>

#include "backend/nvidia_driver.h"
#include "backend/nvidia_options.h"
#include "backend/provider_plugin.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

struct Provider {
  std::string name;                           // in ONNX Runtime
  std::optional<ProviderPlugin> plugin = {};  // none: a part of a build of ONNX Runtime
  std::string package = {};                   // the Python package of that build
  std::string libraries = {};                 // what it needs, as a part of a message
};

ProviderPlugin make_plugin(const char* provider, const char* package, const char* library,
                           const char* install) {
  return {.provider = provider, .package = package, .library = library, .install = install};
}

// By device_names(), without auto and cpu.
const Provider& provider_of(const DeviceName& device) {
  static const std::map<std::string, Provider> providers{
      {"openvino",
       {.name = "OpenVINOExecutionProvider",
        .plugin = make_plugin("OpenVINOExecutionProvider", "onnxruntime_ep_openvino",
                              "libonnxruntime_providers_openvino_plugin.so", "intaglio[openvino]"),
        .libraries = "OpenVINO"}},
      {"tensorrt-rtx",
       {.name = "NvTensorRTRTXExecutionProvider",
        .plugin = make_plugin("NvTensorRTRTXExecutionProvider", "onnxruntime_ep_nv_tensorrt_rtx",
                              "libonnxruntime_providers_nv_tensorrt_rtx.so",
                              "onnxruntime-ep-nv-tensorrt-rtx-cu13"),
        .libraries = "TensorRT for RTX and CUDA"}},
      {"cuda",
       {.name = "CUDAExecutionProvider",
        .package = "onnxruntime-gpu",
        .libraries = "CUDA and cuDNN"}},
      {"tensorrt",
       {.name = "TensorrtExecutionProvider",
        .package = "onnxruntime-gpu",
        .libraries = "TensorRT, CUDA and cuDNN"}},
      {"webgpu",
       {.name = "WebGpuExecutionProvider",
        .package = "onnxruntime-webgpu",
        .libraries = "Vulkan, Direct3D 12 or Metal"}}};
  return providers.at(device.kind);
}

// An ONNX model that computes y = Relu(x) on one float, opset 18, serialised by onnx.helper.
constexpr char kReluModel[] =
    "\x08\x08:3\n\x0c\n\x01x\x12\x01y\"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n"
    "\x02\x08\x01"
    "b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    "B\x04\n\x00\x10\x12";

std::string trimmed(std::string text) {
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

bool is_nvidia(const DeviceName& device) {
  return device.kind == "cuda" || device.kind.starts_with("tensorrt");
}

// Says that the provider is missing, and how to get it.
std::string not_installed(const Provider& provider, const OnnxRuntimeLibrary& library) {
  if (const auto& plugin = provider.plugin) {
    return "ONNX Runtime's plugin for it (" + plugin->library +
           ") is not installed; run pip install '" + plugin->install + "'";
  }
  return "ONNX Runtime " + library.version + " (" + library.path.string() + ") has no " +
         provider.name + "; install " + provider.package +
         " in place of onnxruntime, or give its library with --onnxruntime";
}

// Says why an installed plugin has no such device; empty when it has one.
std::string plugin_unavailable_reason(const ProviderPlugin& plugin, const DeviceName& device) {
  try {
    if (!plugin_devices(plugin, device).empty()) return "";
  } catch (const Ort::Exception& error) {
    return "ONNX Runtime's plugin for it cannot be loaded (" + trimmed(error.what()) +
           "); install versions of onnxruntime and " + plugin.install +
           " that fit each other, or use --device cpu";
  }
  // Up to 1.8.1 OpenVINO's plugin leaves out processors of other vendors, on which OpenVINO itself
  // runs (microsoft/onnxruntime#31981).
  return plugin.provider + " finds no such device" +
         (to_string(device) == "openvino:cpu" ? " (this plugin takes processors of Intel only)"
                                              : "") +
         "; use --device cpu";
}

// Says why a graph of one node did not run, and what would change that.
std::string explain(const DeviceName& device, const std::string& what) {
  if (what.find("Failed to get a WebGPU adapter") != std::string::npos)
    return "there is no GPU that WebGPU can use; install the GPU's Vulkan driver and libvulkan";
  const std::string before = "with error: ";  // the dynamic loader's message follows
  const std::size_t found = what.find(before);
  if (found == std::string::npos) return "ONNX Runtime reports: " + what + "; check the driver";
  return "ONNX Runtime's provider cannot be loaded (" + what.substr(found + before.size()) +
         "); install the versions of " + provider_of(device).libraries +
         " that it needs where the dynamic loader finds them";
}

using PluginOptions = std::unordered_map<std::string, std::string>;

// The settings of OpenVINO: compute in the precision that was asked for, which OpenVINO would
// otherwise lower by itself, and with as many threads as the user allows.
PluginOptions openvino_options(const DeviceName& device, const ProviderSettings& settings) {
  static const std::map<std::string, std::string> hints{
      {"float32", "f32"}, {"bfloat16", "bf16"}, {"float16", "f16"}};
  std::string kind = device.which;
  std::ranges::transform(kind, kind.begin(),
                         [](char c) { return static_cast<char>(c - 'a' + 'A'); });
  nlohmann::json config;
  config["INFERENCE_PRECISION_HINT"] = hints.at(settings.precision);
  config["PERFORMANCE_HINT"] = "LATENCY";
  if (device.which == "cpu") {
    config["ENABLE_CPU_PINNING"] = "NO";
    config["INFERENCE_NUM_THREADS"] = std::to_string(settings.threads);
  }
  return {{"load_config", nlohmann::json::object({{kind, config}}).dump()}};
}

}  // namespace

Ort::Env& onnxruntime_environment() {
  // The environment must outlive every session, so it is never destroyed. It logs fatal errors
  // only, because other errors reach the user as exceptions and would be printed twice.
  static auto* env = new Ort::Env(ORT_LOGGING_LEVEL_FATAL, "intaglio");
  return *env;
}

void register_ops(const fs::path& ops_library) {
  static std::once_flag once;
  std::call_once(once, [&] {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    options.RegisterCustomOpsLibrary(ops_library.c_str(), {});
    Ort::Session(onnxruntime_environment(), kReluModel, sizeof(kReluModel) - 1, options);
  });
}

bool is_installed(const DeviceName& device) {
  const Provider& provider = provider_of(device);
  return provider.plugin ? !find_plugin(*provider.plugin).empty()
                         : std::ranges::count(Ort::GetAvailableProviders(), provider.name) > 0;
}

const std::vector<std::string>& precisions_of(const DeviceName& device) {
  // OpenVINO for NPUs and for GPUs refuses the types that they have no arithmetic for.
  static const std::map<std::string, std::vector<std::string>> precisions{
      {"openvino:cpu", {"float32", "bfloat16", "float16"}},
      {"openvino:gpu", {"float32", "float16"}},
      {"openvino:npu", {"float16"}}};
  static const std::vector<std::string> none;
  const auto found = precisions.find(to_string(device));
  return found == precisions.end() ? none : found->second;
}

std::string device_unavailable_reason(const DeviceName& device, const OnnxRuntimeLibrary& library) {
  const Provider& provider = provider_of(device);
  if (!is_installed(device)) return not_installed(provider, library);
  if (is_nvidia(device)) {
    const std::string reason = gpu_unavailable_reason(card_of(device));
    if (!reason.empty())
      return reason + "; check that nvidia-smi lists the GPU, or use --device cpu";
  }
  if (provider.plugin) {
    const std::string reason = plugin_unavailable_reason(*provider.plugin, device);
    if (!reason.empty()) return reason;
  }
  try {
    ProviderSettings settings{.threads = 1};
    if (const auto& precisions = precisions_of(device); !precisions.empty())
      settings.precision = precisions.front();
    Ort::SessionOptions options;
    add_provider(options, device, settings);
    Ort::Session(onnxruntime_environment(), kReluModel, sizeof(kReluModel) - 1, options);
  } catch (const Ort::Exception& error) {
    return explain(device, trimmed(error.what())) + ", or use --device cpu";
  }
  return "";
}

void add_provider(Ort::SessionOptions& options, const DeviceName& device,
                  const ProviderSettings& settings) {
  onnxruntime_environment();  // loading a provider writes to the log of the environment
  if (const auto& plugin = provider_of(device).plugin) {
    options.AppendExecutionProvider_V2(
        onnxruntime_environment(), plugin_devices(*plugin, device),
        device.kind == "openvino" ? openvino_options(device, settings) : PluginOptions{});
    return;
  }
  if (device.kind == "webgpu") {
    options.AppendExecutionProvider("WebGPU", {});
    return;
  }
  const std::string card = std::to_string(card_of(device));
  if (device.kind == "tensorrt") add_tensorrt(options, card, settings.cache, settings.graph);
  add_cuda(options, card);  // also for tensorrt, where CUDA runs the nodes that TensorRT does not
}

std::string describe_provider(const DeviceName& device) {
  const Provider& provider = provider_of(device);
  if (!provider.plugin) return provider.name;
  const auto devices = plugin_devices(*provider.plugin, device);
  const char* vendor = devices.empty() ? "" : devices.front().EpVendor();
  return provider.name + (*vendor ? std::string(" of ") + vendor : "");
}

}  // namespace intaglio
