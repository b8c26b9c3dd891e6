#include "backend/provider_plugin.h"

#include <map>
#include <mutex>

#include "backend/loaded_file.h"
#include "backend/providers.h"
#include "intaglio/error.h"

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

// Loads the plugin into ONNX Runtime, unless this process has done so.
void register_plugin(const ProviderPlugin& plugin) {
  static std::mutex mutex;
  static std::map<std::string, fs::path> registered;
  const std::scoped_lock lock(mutex);
  if (registered.contains(plugin.provider)) return;
  const fs::path library = find_plugin(plugin);
  if (library.empty()) {
    throw UnavailableError("its plugin " + plugin.library + " is not installed: pip install '" +
                           plugin.install + "'");
  }
  onnxruntime_environment().RegisterExecutionProviderLibrary(plugin.provider.c_str(), library);
  registered.emplace(plugin.provider, library);
}

}  // namespace

fs::path find_plugin(const ProviderPlugin& plugin) {
  const fs::path own = own_library_folder();
  std::error_code error;
  // pip installs site-packages/intaglio/lib beside the packages of the plugins.
  for (const fs::path& folder : {own, own / "../.." / plugin.package})
    if (fs::exists(folder / plugin.library, error)) return folder / plugin.library;
  return {};
}

std::vector<Ort::ConstEpDevice> plugin_devices(const ProviderPlugin& plugin,
                                               const DeviceName& device) {
  register_plugin(plugin);
  std::vector<Ort::ConstEpDevice> all;
  for (const Ort::ConstEpDevice& found : onnxruntime_environment().GetEpDevices())
    if (found.EpName() == plugin.provider) all.push_back(found);
  if (device.kind == "openvino") {
    const OrtHardwareDeviceType type = hardware_type(device.which);
    std::erase_if(all, [&](const auto& found) { return found.Device().Type() != type; });
    return all;
  }
  const std::size_t index = device.which.empty() ? 0 : std::stoul(device.which);
  return index < all.size() ? std::vector{all[index]} : std::vector<Ort::ConstEpDevice>{};
}

}  // namespace intaglio
