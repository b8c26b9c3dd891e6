#include "backend/providers.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "backend/nvidia_driver.h"
#include "backend/nvidia_options.h"
#include "backend/provider_plugin.h"
#include "backend/vendor_libraries.h"
#include "intaglio/error.h"
#include "platform/process.h"
#include "platform/shared_library.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

struct Provider {
  std::string name;       // in ONNX Runtime
  std::string extra;      // of the package intaglio, which brings it
  std::string libraries;  // what it needs, as a part of a message
};

// By the kind of a device, without auto and cpu.
const Provider& provider_of(const DeviceName& device) {
  static const std::map<std::string, Provider> providers{
      {"openvino", {"OpenVINOExecutionProvider", "openvino", "OpenVINO"}},
      {"tensorrt-rtx",
       {"NvTensorRTRTXExecutionProvider", "tensorrt-rtx", "TensorRT for RTX and CUDA"}},
      {"cuda", {"CUDAExecutionProvider", "cuda", "CUDA and cuDNN"}},
      {"tensorrt", {"TensorrtExecutionProvider", "cuda", "TensorRT 10, CUDA and cuDNN"}},
      {"webgpu", {"WebGpuExecutionProvider", "webgpu", "Vulkan"}}};
  return providers.at(device.kind);
}

// Whether the provider is a part of the loaded library.
bool is_built_in(const DeviceName& device) {
  return std::ranges::count(Ort::GetAvailableProviders(), provider_of(device).name) > 0;
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
Obstacle not_installed(const DeviceName& device, const OnnxRuntimeLibrary& library) {
  const Provider& provider = provider_of(device);
  const std::string install =
      "pip install 'intaglio[" + provider.extra + "]'" +
      (device.kind == "tensorrt" ? " and put TensorRT 10 where the dynamic loader finds it" : "");
  if (const ProviderPlugin* plugin = plugin_of(device.kind))
    return {"its plugin (" + plugin->package + ") is not installed", install};
  const std::string reason = "ONNX Runtime " + library.version + " has no " + provider.name;
  std::error_code error;
  if (std::filesystem::exists(
          library.path.parent_path() / platform::library_file("onnxruntime_providers_cuda"),
          error)) {
    return {reason + ": the package onnxruntime has replaced a part of onnxruntime-gpu",
            "pip install --force-reinstall --no-deps onnxruntime-gpu"};
  }
  return {reason, install};
}

// Says why an installed plugin has no such device.
Obstacle no_device(const DeviceName& device) {
  const std::string name = to_string(device);
  // Up to 1.8.1 OpenVINO's plugin leaves out processors of other vendors, on which OpenVINO itself
  // runs (microsoft/onnxruntime#31981).
  if (name == "openvino:cpu") {
    return {"OpenVINO's plugin takes processors of Intel only",
            "give the library of onnxruntime-openvino with --onnxruntime"};
  }
  if (name == "openvino:gpu")
    return {"OpenVINO finds no GPU of Intel", "apt install intel-opencl-icd"};
  if (name == "openvino:npu")
    return {"OpenVINO finds no NPU of Intel", "install Intel's driver linux-npu-driver"};
  if (device.kind == "webgpu")
    return {"ONNX Runtime finds no GPU", "check that lspci lists the GPU"};
  return {provider_of(device).name + " finds no card that it supports",
          "pip install 'intaglio[cuda]' and use --device cuda"};
}

// Says why an installed plugin does not run the device; empty when it may.
Obstacle plugin_obstacle(const ProviderPlugin& plugin, const DeviceName& device) {
  try {
    return plugin_devices(plugin, device).empty() ? no_device(device) : Obstacle{};
  } catch (const Ort::Exception& error) {
    return {"its plugin cannot be loaded (" + trimmed(error.what()) + ")",
            "pip install --upgrade 'intaglio[" + provider_of(device).extra + "]' onnxruntime"};
  }
}

// Says why a graph of one node did not run, and what would change that.
Obstacle explain(const DeviceName& device, const std::string& what) {
  if (what.find("Failed to get a WebGPU adapter") != std::string::npos) {
    return {"there is no GPU that WebGPU can use with Vulkan",
            "apt install libvulkan1 mesa-vulkan-drivers"};
  }
  // "... CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=0 ..."
  if (const std::size_t start = what.find("CUDA failure "); start != std::string::npos) {
    return {what.substr(start, what.find(" ;", start) - start),
            "install a newer driver of NVIDIA's, until nvidia-smi lists the GPU"};
  }
  const std::string before = "with error: ";  // the dynamic loader's message follows
  const std::size_t found = what.find(before);
  if (found == std::string::npos) return {"ONNX Runtime reports: " + what, "check the driver"};
  return {"its provider cannot be loaded (" + what.substr(found + before.size()) + ")",
          device.kind == "cuda" ? "pip install 'intaglio[cuda]'"
                                : "install the versions of " + provider_of(device).libraries +
                                      " that it needs where the dynamic loader finds them"};
}

// Adds the provider of a build of ONNX Runtime. pip installs CUDA and cuDNN where the dynamic
// loader does not find them, so what it misses is loaded from there.
template <typename Add>
void add_built_in(const Add& add) {
  for (std::string last;;) {
    try {
      add();
      return;
    } catch (const Ort::Exception& error) {
      const fs::path packages = onnxruntime_packages();
      if (error.what() == last || packages.empty() ||
          !load_missing_library(error.what(), nvidia_package_folders(packages)))
        throw;
      last = error.what();
    }
  }
}

std::string upper(std::string word) {
  for (char& letter : word) letter = static_cast<char>(letter - 'a' + 'A');
  return word;
}

using PluginOptions = std::unordered_map<std::string, std::string>;

// The settings of OpenVINO: compute in the precision that was asked for, which OpenVINO would
// otherwise lower by itself, and with as many threads as the user allows.
PluginOptions openvino_options(const DeviceName& device, const ProviderSettings& settings) {
  static const std::map<std::string, std::string> hints{
      {"float32", "f32"}, {"bfloat16", "bf16"}, {"float16", "f16"}};
  nlohmann::json config;
  config["INFERENCE_PRECISION_HINT"] = hints.at(settings.precision);
  config["PERFORMANCE_HINT"] = "LATENCY";
  if (device.which == "cpu") {
    config["ENABLE_CPU_PINNING"] = "NO";
    config["INFERENCE_NUM_THREADS"] = std::to_string(settings.threads);
  }
  if (!settings.cache.empty()) config["CACHE_DIR"] = settings.cache.string();
  return {{"load_config", nlohmann::json::object({{upper(device.which), config}}).dump()}};
}

PluginOptions plugin_options(const DeviceName& device, const ProviderSettings& settings) {
  if (device.kind == "openvino") return openvino_options(device, settings);
  if (device.kind == "tensorrt-rtx" && !settings.cache.empty())
    return {{"nv_runtime_cache_path", settings.cache.string()}};
  return {};
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

std::unique_lock<std::mutex> lock_use(const DeviceName& device) {
  static std::mutex mutex;
  return device.kind == "webgpu" ? std::unique_lock(mutex) : std::unique_lock<std::mutex>();
}

const ProviderPlugin* used_plugin(const DeviceName& device) {
  const ProviderPlugin* plugin = plugin_of(device.kind);
  if (!plugin || !is_built_in(device)) return plugin;
  // OpenVINO's plugin is the newer one, but it may have no device where the build has one.
  if (device.kind != "openvino" || find_plugin(*plugin).empty()) return nullptr;
  try {
    return plugin_devices(*plugin, device).empty() ? nullptr : plugin;
  } catch (const Ort::Exception&) {  // the plugin does not fit the library
    return nullptr;
  }
}

bool is_installed(const DeviceName& device) {
  const ProviderPlugin* plugin = plugin_of(device.kind);
  return is_built_in(device) || (plugin && !find_plugin(*plugin).empty());
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

bool compiles(const DeviceName& device) {
  // OpenVINO compiles for the CPU in seconds, and would keep another copy of the weights.
  return device.kind.starts_with("tensorrt") ||
         (device.kind == "openvino" && device.which != "cpu");
}

namespace {

// Says what hardware is missing for a device, or nothing when the machine may have it.
std::string missing_hardware(const DeviceName& device) {
  const bool intel = device.which == "gpu" || device.which == "npu";
  if (intel && !platform::may_have_card_of("0x8086"))
    return "this machine has no Intel " + upper(device.which);
  const bool may_have_nvidia = !nvidia_cards().empty() || platform::may_have_card_of("0x10de");
  if (is_nvidia(device) && !may_have_nvidia) return "this machine has no NVIDIA GPU";
  // In a container, an NVIDIA card is often there without /dev/dri.
  if (device.kind == "webgpu" && !platform::may_have_gpu() && !may_have_nvidia)
    return "this machine has no GPU";
  return "";
}

// Returns what is in the way, without a look at the hardware.
Obstacle software_obstacle(const DeviceName& device, const OnnxRuntimeLibrary& library) {
  if (!is_installed(device)) return not_installed(device, library);
  if (is_nvidia(device)) {
    const std::string reason = gpu_unavailable_reason(card_of(device));
    if (!reason.empty()) return {reason, "install NVIDIA's driver, until nvidia-smi lists the GPU"};
  }
  if (const ProviderPlugin* plugin = used_plugin(device)) {
    const Obstacle obstacle = plugin_obstacle(*plugin, device);
    if (!obstacle.reason.empty()) return obstacle;
  }
  try {
    ProviderSettings settings{.threads = 1};
    if (const auto& precisions = precisions_of(device); !precisions.empty())
      settings.precision = precisions.front();
    Ort::SessionOptions options;
    add_provider(options, device, settings);
    const auto lock = lock_use(device);
    Ort::Session(onnxruntime_environment(), kReluModel, sizeof(kReluModel) - 1, options);
  } catch (const Ort::Exception& error) {
    return explain(device, trimmed(error.what()));
  }
  return {};
}

}  // namespace

std::string describe(const Obstacle& obstacle) {
  if (!obstacle.missing.empty()) return obstacle.reason + ", and " + obstacle.missing;
  return obstacle.reason + (obstacle.remedy.empty() ? "" : "; " + obstacle.remedy);
}

Obstacle device_obstacle(const DeviceName& device, const OnnxRuntimeLibrary& library) {
  Obstacle obstacle = software_obstacle(device, library);
  if (!obstacle.reason.empty()) obstacle.missing = missing_hardware(device);
  return obstacle;
}

void require_device(const DeviceName& device, const OnnxRuntimeLibrary& library) {
  const Obstacle obstacle = device_obstacle(device, library);
  if (obstacle.reason.empty()) return;
  const std::string way_out = obstacle.missing.empty() ? ", or use" : "; use";
  throw UnavailableError("device " + to_string(device) +
                         " does not work here: " + describe(obstacle) + way_out + " --device cpu");
}

void add_provider(Ort::SessionOptions& options, const DeviceName& device,
                  const ProviderSettings& settings) {
  onnxruntime_environment();  // loading a provider writes to the log of the environment
  // TensorRT's providers have no setting against TensorFloat-32, which would round float32.
  if (device.kind.starts_with("tensorrt"))
    platform::set_environment_default("NVIDIA_TF32_OVERRIDE", "0");
  if (const ProviderPlugin* plugin = used_plugin(device)) {
    options.AppendExecutionProvider_V2(onnxruntime_environment(), plugin_devices(*plugin, device),
                                       plugin_options(device, settings));
    return;
  }
  if (device.kind == "openvino") {
    PluginOptions chosen = openvino_options(device, settings);
    chosen["device_type"] = upper(device.which);
    options.AppendExecutionProvider_OpenVINO_V2(chosen);
    return;
  }
  if (device.kind == "webgpu") {
    options.AppendExecutionProvider("WebGPU", {});
    return;
  }
  const std::string card = std::to_string(card_of(device));
  if (device.kind == "tensorrt")
    add_built_in([&] { add_tensorrt(options, card, settings.cache, settings.graph); });
  // Also for tensorrt, where CUDA runs the nodes that TensorRT does not.
  add_built_in([&] { add_cuda(options, card); });
}

const std::string& provider_name(const DeviceName& device) { return provider_of(device).name; }

std::string describe_provider(const DeviceName& device) {
  const std::string& name = provider_of(device).name;
  const ProviderPlugin* plugin = used_plugin(device);
  if (!plugin) return name;
  const auto devices = plugin_devices(*plugin, device);
  if (devices.empty()) return name;
  const char* version = devices.front().EpMetadata().GetValue(kOrtEpDevice_EpMetadataKey_Version);
  return name + (version ? std::string(" ") + version : "");
}

}  // namespace intaglio
