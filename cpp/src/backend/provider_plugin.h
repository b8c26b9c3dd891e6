// Execution providers that vendors ship as a library of their own, behind ONNX Runtime's C
// interface for plugins.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "backend/device_name.h"
#include "backend/ort_api.h"

namespace intaglio {

struct ProviderPlugin {
  std::string provider;  // its name in ONNX Runtime
  std::string package;   // the folder of its Python package
  std::string library;   // the name of its file
  std::string install;   // what pip installs to get it
};

// Returns the library of the plugin: beside Intaglio's own library, as in a deployment folder, or
// in the plugin's Python package beside Intaglio's. Empty when there is none.
std::filesystem::path find_plugin(const ProviderPlugin& plugin);

// Registers a plugin that find_plugin() finds with ONNX Runtime, unless this process has done so,
// and returns the devices that it finds for `device`. Throws Ort::Exception when the library cannot
// be loaded.
std::vector<Ort::ConstEpDevice> plugin_devices(const ProviderPlugin& plugin,
                                               const DeviceName& device);

}  // namespace intaglio
