// ONNX Runtime's execution providers: which of them runs a device, whether it works here, and how
// a session is told to use it.
#pragma once

#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include "backend/device_name.h"
#include "backend/onnxruntime_library.h"
#include "backend/ort_api.h"
#include "backend/provider_plugin.h"

namespace intaglio {

// Returns the environment of this process, which it creates in the first call.
Ort::Env& onnxruntime_environment();

// Registers the operators of `ops_library` with ONNX Runtime, once per process. The first session
// that uses the operators adds their domain to a table without a lock, so this function opens such
// a session before several threads can.
void register_ops(const std::filesystem::path& ops_library);

// What a provider needs to know about a session.
struct ProviderSettings {
  int threads = 0;
  std::string precision = "float32";  // one of precisions_of() the device
  std::filesystem::path cache = {};   // the folder for compiled graphs; empty: they are not kept
  std::string graph = {};             // the path of the graph in its bundle
};

// Returns the types in which the device can be told to compute, or none when it computes in the
// types of the graph.
const std::vector<std::string>& precisions_of(const DeviceName& device);

// Must be held while a session is opened or runs on the device. WebGPU's plugin (0.4.0) ends the
// process when two threads open sessions at the same time.
std::unique_lock<std::mutex> lock_use(const DeviceName& device);

// Returns the plugin that runs the device, or null where the loaded library itself does.
const ProviderPlugin* used_plugin(const DeviceName& device);

// Returns whether the provider of the device is a part of the loaded library, or its plugin is
// there.
bool is_installed(const DeviceName& device);

// Why a device does not work, and one command that would change that, or the hardware that is
// missing, which no command changes. They are parts of a message, empty where there is none.
struct Obstacle {
  std::string reason, remedy, missing = {};
};
std::string describe(const Obstacle& obstacle);  // "there is no driver; apt install it"

// Returns whether the provider of the device compiles a graph for so long that the result is kept.
bool compiles(const DeviceName& device);

// Opens a graph of one node with the provider of the device. Returns what is in the way, because
// there is no such provider, driver or card, or libraries are missing. The reason is empty when the
// device works.
Obstacle device_obstacle(const DeviceName& device, const OnnxRuntimeLibrary& library);
// Throws UnavailableError for a device that does not work.
void require_device(const DeviceName& device, const OnnxRuntimeLibrary& library);

// Adds the provider of a device that works to a session's options.
void add_provider(Ort::SessionOptions& options, const DeviceName& device,
                  const ProviderSettings& settings);

// Returns the name that the device's provider has in ONNX Runtime.
const std::string& provider_name(const DeviceName& device);

// Describes what runs a device that works: "OpenVINOExecutionProvider 1.8.1".
std::string describe_provider(const DeviceName& device);

}  // namespace intaglio
