// Finds and loads libonnxruntime once per process, and finds our library of kernels for it.
#pragma once

#include <filesystem>
#include <string>

namespace intaglio {

struct OnnxRuntimeLibrary {
  std::string version;
  std::filesystem::path path;  // of the loaded file, which has its providers' libraries beside it
};

// Loads `library` and initialises ONNX Runtime's C++ API. When `library` is empty, it loads the
// first library that it finds beside libintaglio, in the onnxruntime package next to our Python
// package, or on the system. In the package it takes the build for NVIDIA's GPUs before the other
// one, because pip installs onnxruntime and onnxruntime-gpu into one folder. Later calls return the
// library of the first call. Throws UnavailableError that says what was tried, or that another
// library than `library` is already loaded.
const OnnxRuntimeLibrary& load_onnxruntime(const std::filesystem::path& library);

// Returns the folder of Python packages that the loaded library is in, or an empty path.
std::filesystem::path onnxruntime_packages();

// Returns the path of libintaglio_ops.so beside libintaglio, or an empty path when there is none.
std::filesystem::path ops_library();

}  // namespace intaglio
