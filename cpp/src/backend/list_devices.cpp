#include "backend/device_memory_size.h"
#include "backend/device_name.h"
#include "backend/nvidia_driver.h"
#include "backend/onnxruntime_library.h"
#include "backend/provider_plugin.h"
#include "backend/providers.h"
#include "intaglio/backend.h"
#include "platform/process.h"

namespace intaglio {

namespace {

// Describes the processor and its memory.
void add_processor(DeviceStatus& status) {
  status.card = platform::processor_name();
  status.memory_bytes = platform::physical_memory_bytes();
}

void add_nvidia_card(DeviceStatus& status, const NvidiaCard& card) {
  status.card = card.name;
  status.memory_bytes = card.memory_bytes;
  status.driver = nvidia_driver_version();
}

// Describes what ONNX Runtime knows of a plugin's device: its vendor, a name on some systems, and
// the slot by which the driver knows more of an NVIDIA card.
void add_plugin_device(DeviceStatus& status, const Ort::ConstEpDevice& device) {
  const auto hardware = device.Device();
  const auto known = hardware.Metadata().GetKeyValuePairs();
  const auto name = known.find("Description");
  status.card = name == known.end() ? hardware.Vendor() : name->second;
  const auto slot = known.find("pci_bus_id");
  if (slot == known.end()) return;
  for (const NvidiaCard& card : nvidia_cards())
    if (card.pci_bus_id.ends_with(slot->second) || slot->second.ends_with(card.pci_bus_id))
      add_nvidia_card(status, card);
}

void describe_hardware(DeviceStatus& status, const DeviceName& device) {
  if (device.kind == "cpu" || to_string(device) == "openvino:cpu") {
    add_processor(status);
  } else if (device.kind == "cuda" || device.kind == "tensorrt") {
    add_nvidia_card(status, nvidia_cards().at(static_cast<std::size_t>(card_of(device))));
  } else if (const ProviderPlugin* plugin = used_plugin(device)) {
    for (const auto& found : plugin_devices(*plugin, device)) add_plugin_device(status, found);
  }
}

DeviceStatus try_device(const DeviceName& device, const OnnxRuntimeLibrary& library) {
  DeviceStatus status{.device = to_string(device), .runtime = "ONNX Runtime " + library.version};
  if (device.kind != "cpu") {
    const Obstacle obstacle = device_obstacle(device, library);
    status.reason = obstacle.reason;
    status.remedy = obstacle.missing.empty() ? obstacle.remedy : obstacle.missing;
  }
  status.works = status.reason.empty();
  if (!status.works) return status;
  if (device.kind != "cpu") status.runtime += ", " + describe_provider(device);
  describe_hardware(status, device);
  return status;
}

// Returns how many cards a kind of device has whose cards have numbers, or 0 when that is unknown.
std::size_t cards_of(const std::string& kind) {
  const bool built_in = kind == "cuda" || kind == "tensorrt";
  if (!built_in && kind != "tensorrt-rtx") return 0;
  if (!is_installed({.kind = kind})) return 0;
  if (built_in) return nvidia_cards().size();
  try {
    return plugin_devices(*plugin_of(kind)).size();
  } catch (const Ort::Exception&) {
    return 0;  // the status says why
  }
}

}  // namespace

std::uint64_t device_memory_bytes(const std::string& device) {
  DeviceStatus status;
  describe_hardware(status, parse_device(device));
  return status.memory_bytes;
}

std::vector<DeviceStatus> list_devices(const BackendOptions& options) {
  const OnnxRuntimeLibrary& library = load_onnxruntime(options.onnxruntime_library);
  use_plugin_library(options.provider_library);
  std::vector<DeviceStatus> all;
  for (const std::string& name : device_names()) {
    if (name == "auto") continue;
    DeviceName device = parse_device(name);
    const std::size_t cards = cards_of(device.kind);
    if (cards == 0) all.push_back(try_device(device, library));
    for (std::size_t number = 0; number < cards; ++number) {
      device.which = std::to_string(number);
      all.push_back(try_device(device, library));
    }
  }
  return all;
}

}  // namespace intaglio
