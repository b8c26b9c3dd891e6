// Finding and loading libonnxruntime, once per process, and finding our own kernels for it.
#pragma once

#include <filesystem>
#include <string>

namespace intaglio {

struct OnnxRuntimeLibrary {
  std::string version;
  std::filesystem::path path;  // of the loaded file; its providers' libraries lie beside it
};

// Loads `library`, or when it is empty the first that is found: beside libintaglio, in Python's
// onnxruntime package beside this one, on the system. Initialises the C++ API. Later calls keep the
// library of the first. Throws UnavailableError saying what was tried, or that
// another library than `library` is loaded.
const OnnxRuntimeLibrary& load_onnxruntime(const std::filesystem::path& library);

// libintaglio_ops.so beside libintaglio; empty when it is not there.
std::filesystem::path ops_library();

}  // namespace intaglio
