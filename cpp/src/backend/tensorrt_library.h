// Finding and loading TensorRT's library, and which of its binary interfaces it has.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace intaglio {

struct TensorRtApi;  // tensorrt_api.h

struct TensorRtLibrary {
  std::string title;    // TensorRT, or TensorRT-RTX
  std::string version;  // "1.7.1.116", as engine.json has it
  std::int32_t number = 0;
  const TensorRtApi* api = nullptr;
  void* (*create_runtime)(void* logger, std::int32_t version) = nullptr;
  void* (*create_builder)(void* logger, std::int32_t version) = nullptr;
};

// Loads `path`, or when it is empty the first that is found for `device` (tensorrt or
// tensorrt-rtx): beside libintaglio, in Python's package beside this one, on the system. A process
// loads each once, and keeps it. Throws UnavailableError saying what was tried, or that the version
// is one whose interface is not known.
const TensorRtLibrary& load_tensorrt(const std::string& device, const std::filesystem::path& path);

// "TensorRT" or "TensorRT-RTX".
std::string tensorrt_title(const std::string& device);

}  // namespace intaglio
