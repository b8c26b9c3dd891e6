#include "backend/provider_plugin.h"

#include <map>
#include <mutex>

#include "backend/loaded_file.h"
#include "backend/onnxruntime_library.h"
#include "backend/providers.h"
#include "backend/vendor_libraries.h"
#include "intaglio/error.h"
#include "platform/shared_library.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

const std::map<std::string, ProviderPlugin>& plugins() {
  static const std::map<std::string, ProviderPlugin> all{
      {"openvino",
       {.provider = "OpenVINOExecutionProvider",
        .package = "onnxruntime_ep_openvino",
        .library = platform::library_file("onnxruntime_providers_openvino_plugin")}},
      {"tensorrt-rtx",
       {.provider = "NvTensorRTRTXExecutionProvider",
        .package = "onnxruntime_ep_nv_tensorrt_rtx",
        .library = platform::library_file("onnxruntime_providers_nv_tensorrt_rtx")}},
      {"webgpu",
       {.provider = "WebGpuExecutionProvider",
        .package = "onnxruntime_ep_webgpu",
        .library = platform::library_file("onnxruntime_providers_webgpu")}}};
  return all;
}

// What this process was told of plugins, and did with them.
struct Registry {
  std::mutex mutex;
  std::map<std::string, fs::path> given, registered;  // libraries, by the provider's name
};

Registry& registry() {
  static Registry only;
  return only;
}

bool same_file(const fs::path& one, const fs::path& other) {
  std::error_code error;
  return fs::equivalent(one, other, error);
}

// Lets ONNX Runtime load the plugin. NVIDIA's is linked with libraries of its own package, which
// the dynamic loader does not find there.
void register_plugin(const ProviderPlugin& plugin, const fs::path& library) {
  for (std::string last;;) {
    try {
      onnxruntime_environment().RegisterExecutionProviderLibrary(plugin.provider.c_str(), library);
      return;
    } catch (const Ort::Exception& error) {
      if (error.what() == last || !load_missing_library(error.what(), {library.parent_path()}))
        throw;
      last = error.what();
    }
  }
}

OrtHardwareDeviceType hardware_type(const std::string& which) {
  static const std::map<std::string, OrtHardwareDeviceType> types{
      {"cpu", OrtHardwareDeviceType_CPU},
      {"gpu", OrtHardwareDeviceType_GPU},
      {"npu", OrtHardwareDeviceType_NPU}};
  return types.at(which);
}

// The mutex of the registry is held.
fs::path find(const ProviderPlugin& plugin) {
  const auto given = registry().given.find(plugin.provider);
  if (given != registry().given.end()) return given->second;
  std::vector<fs::path> folders;
  // A path from an empty folder would begin in the current one.
  if (const fs::path own = own_library_folder(); !own.empty())
    folders = {own, own / plugin.package, own / "../.." / plugin.package};
  if (const fs::path packages = onnxruntime_packages(); !packages.empty())
    folders.push_back(packages / plugin.package);
  std::error_code error;
  for (const fs::path& folder : folders) {
    const fs::path library = folder / plugin.library;
    if (fs::exists(library, error)) return fs::canonical(library, error);
  }
  return {};
}

}  // namespace

const ProviderPlugin* plugin_of(const std::string& kind) {
  const auto found = plugins().find(kind);
  return found == plugins().end() ? nullptr : &found->second;
}

void use_plugin_library(const fs::path& library) {
  if (library.empty()) return;
  std::error_code error;
  const fs::path file = fs::canonical(library, error);
  if (error) {
    throw UsageError("--provider-library " + library.string() + ": " + error.message() +
                     "; give the path of the plugin's library");
  }
  std::string names;
  for (const auto& [kind, plugin] : plugins()) {
    names += (names.empty() ? "" : ", ") + plugin.library;
    if (!library.filename().string().starts_with(plugin.library)) continue;
    const std::scoped_lock lock(registry().mutex);
    const auto loaded = registry().registered.find(plugin.provider);
    if (loaded != registry().registered.end() && !same_file(loaded->second, file)) {
      throw UnavailableError("this process has loaded " + plugin.provider + " from " +
                             loaded->second.string() + " and cannot load " + library.string() +
                             " as well: give the same library, or start another process");
    }
    registry().given[plugin.provider] = file;
    return;
  }
  throw UsageError("--provider-library " + library.string() +
                   " is not a plugin that Intaglio knows: give one of " + names);
}

fs::path find_plugin(const ProviderPlugin& plugin) {
  const std::scoped_lock lock(registry().mutex);
  return find(plugin);
}

std::vector<Ort::ConstEpDevice> plugin_devices(const ProviderPlugin& plugin) {
  // ONNX Runtime lists devices without a lock while it registers others, so both are done here
  // under one.
  const std::scoped_lock lock(registry().mutex);
  auto& registered = registry().registered;
  if (!registered.contains(plugin.provider)) {
    const fs::path library = find(plugin);
    register_plugin(plugin, library);
    registered[plugin.provider] = library;
  }
  std::vector<Ort::ConstEpDevice> devices = onnxruntime_environment().GetEpDevices();
  std::erase_if(devices, [&](const auto& device) { return device.EpName() != plugin.provider; });
  return devices;
}

std::vector<Ort::ConstEpDevice> plugin_devices(const ProviderPlugin& plugin,
                                               const DeviceName& device) {
  std::vector<Ort::ConstEpDevice> all = plugin_devices(plugin);
  if (device.kind == "openvino") {
    const OrtHardwareDeviceType type = hardware_type(device.which);
    std::erase_if(all, [&](const auto& found) { return found.Device().Type() != type; });
    return all;
  }
  const std::size_t index = device.which.empty() ? 0 : std::stoul(device.which);
  return index < all.size() ? std::vector{all[index]} : std::vector<Ort::ConstEpDevice>{};
}

}  // namespace intaglio
