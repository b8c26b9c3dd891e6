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
};

// Returns the plugin for a kind of device, or null where there is none.
const ProviderPlugin* plugin_of(const std::string& kind);

// Takes the library of a plugin from `library` from now on. Does nothing for an empty path. Throws
// UsageError when the file is not there or does not have the name of a plugin, and UnavailableError
// when this process has loaded the plugin from another file.
void use_plugin_library(const std::filesystem::path& library);

// Returns the library of the plugin: the one of use_plugin_library(), or the first that is beside
// Intaglio's own library or in the plugin's package beside it, as in a deployment folder, or in
// the folder of Python packages that Intaglio or ONNX Runtime is in. Empty when there is none.
std::filesystem::path find_plugin(const ProviderPlugin& plugin);

// Registers a plugin that find_plugin() finds with ONNX Runtime, unless this process has done so,
// and returns all of its devices, or those for `device`. Throw Ort::Exception when the library
// cannot be loaded.
std::vector<Ort::ConstEpDevice> plugin_devices(const ProviderPlugin& plugin);
std::vector<Ort::ConstEpDevice> plugin_devices(const ProviderPlugin& plugin,
                                               const DeviceName& device);

}  // namespace intaglio
