#include "backend/provider_plugin.h"

#include <map>
#include <mutex>
#include <set>

#include "backend/loaded_file.h"
#include "backend/providers.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

OrtHardwareDeviceType hardware_type(const std::string& which) {
  static const std::map<std::string, OrtHardwareDeviceType> types{
      {"cpu", OrtHardwareDeviceType_CPU},
      {"gpu", OrtHardwareDeviceType_GPU},
      {"npu", OrtHardwareDeviceType_NPU}};
  return types.at(which);
}

// Returns all devices of the plugin, which it loads into ONNX Runtime unless this process has done
// so. ONNX Runtime lists devices without a lock while it registers others, so both are done here
// under one.
std::vector<Ort::ConstEpDevice> all_devices(const ProviderPlugin& plugin) {
  static std::mutex mutex;
  static std::set<std::string> registered;
  const std::scoped_lock lock(mutex);
  Ort::Env& environment = onnxruntime_environment();
  if (!registered.contains(plugin.provider)) {
    environment.RegisterExecutionProviderLibrary(plugin.provider.c_str(), find_plugin(plugin));
    registered.insert(plugin.provider);
  }
  std::vector<Ort::ConstEpDevice> found = environment.GetEpDevices();
  std::erase_if(found, [&](const auto& device) { return device.EpName() != plugin.provider; });
  return found;
}

}  // namespace

fs::path find_plugin(const ProviderPlugin& plugin) {
  const fs::path own = own_library_folder();
  if (own.empty()) return {};  // a path from here would begin in the current folder
  std::error_code error;
  // pip installs site-packages/intaglio/lib beside the packages of the plugins.
  for (const fs::path& folder : {own, own / "../.." / plugin.package})
    if (fs::exists(folder / plugin.library, error)) return folder / plugin.library;
  return {};
}

std::vector<Ort::ConstEpDevice> plugin_devices(const ProviderPlugin& plugin,
                                               const DeviceName& device) {
  std::vector<Ort::ConstEpDevice> all = all_devices(plugin);
  if (device.kind == "openvino") {
    const OrtHardwareDeviceType type = hardware_type(device.which);
    std::erase_if(all, [&](const auto& found) { return found.Device().Type() != type; });
    return all;
  }
  const std::size_t index = device.which.empty() ? 0 : std::stoul(device.which);
  return index < all.size() ? std::vector{all[index]} : std::vector<Ort::ConstEpDevice>{};
}

}  // namespace intaglio
