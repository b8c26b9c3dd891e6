#include "backend/tensorrt_library.h"

#include <dlfcn.h>

#include <array>
#include <map>
#include <mutex>
#include <vector>

#include "backend/loaded_file.h"
#include "backend/tensorrt_api.h"
#include "intaglio/error.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

struct Names {
  std::vector<std::string> libraries;  // the newest first
  std::string package;                 // Python's, whose folder holds them
};

Names names_of(const std::string& device) {
  if (device == "tensorrt-rtx") return {{"libtensorrt_rtx.so.1"}, "tensorrt_rtx_libs"};
  return {{"libnvinfer.so.11", "libnvinfer.so.10"}, "tensorrt_libs"};
}

std::vector<fs::path> candidates(const Names& names, const fs::path& path) {
  if (!path.empty()) return {path};
  const fs::path own = own_folder();
  std::vector<fs::path> paths;
  for (const std::string& name : names.libraries) {
    // Installed by pip: site-packages/intaglio/lib beside site-packages/tensorrt_libs.
    for (const fs::path& folder : {own, own / "../.." / names.package}) {
      std::error_code error;
      if (fs::exists(folder / name, error)) paths.push_back(folder / name);
    }
    paths.emplace_back(name);  // wherever the system's loader looks
  }
  return paths;
}

// nullptr for a version whose tables nobody has looked at.
const TensorRtApi* api_of(const std::string& device, int major, int minor) {
  if (device == "tensorrt-rtx") return major == 1 && minor == 7 ? &kTensorRtRtx : nullptr;
  if (major == 11) return &kTensorRt11;
  return major == 10 && minor >= 1 ? &kTensorRt10 : nullptr;
}

template <typename Function>
bool find(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  return function != nullptr;
}

// Empty when the library can be used, else what is wrong with it.
std::string examine(void* handle, const std::string& device, TensorRtLibrary& library) {
  std::array<std::int32_t (*)(), 4> parts{};
  std::int32_t (*number)() = nullptr;
  const bool whole = find(handle, "getInferLibMajorVersion", parts[0]) &&
                     find(handle, "getInferLibMinorVersion", parts[1]) &&
                     find(handle, "getInferLibPatchVersion", parts[2]) &&
                     find(handle, "getInferLibBuildVersion", parts[3]) &&
                     find(handle, "getInferLibVersion", number) &&
                     find(handle, "createInferRuntime_INTERNAL", library.create_runtime) &&
                     find(handle, "createInferBuilder_INTERNAL", library.create_builder);
  if (!whole) return "is not " + tensorrt_title(device);
  library.number = number();
  for (auto* part : parts) library.version += std::to_string(part()) + ".";
  library.version.pop_back();
  library.title = tensorrt_title(device);
  library.api = api_of(device, parts[0](), parts[1]());
  if (library.api) return {};
  return "is " + library.title + " " + library.version + ", and this Intaglio works with " +
         (device == "tensorrt-rtx" ? "1.7" : "10.1 and later, and 11");
}

}  // namespace

std::string tensorrt_title(const std::string& device) {
  return device == "tensorrt-rtx" ? "TensorRT-RTX" : "TensorRT";
}

const TensorRtLibrary& load_tensorrt(const std::string& device, const fs::path& path) {
  static std::mutex mutex;
  static std::map<std::pair<std::string, std::string>, TensorRtLibrary> loaded;
  const std::scoped_lock lock(mutex);
  const auto known = loaded.find({device, path.string()});
  if (known != loaded.end()) return known->second;
  const Names names = names_of(device);
  std::string tried;
  for (const fs::path& candidate : candidates(names, path)) {
    void* handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
      tried += "; " + std::string(dlerror());
      continue;
    }
    TensorRtLibrary library;
    const std::string wrong = examine(handle, device, library);
    if (wrong.empty()) return loaded[{device, path.string()}] = library;
    tried += "; " + candidate.string() + " " + wrong;
    dlclose(handle);
  }
  throw UnavailableError("no usable " + tensorrt_title(device) +
                         " library: give --tensorrt-library LIBRARY (tensorrt_library in a "
                         "program), or put " +
                         names.libraries.front() + " where the loader looks (tried" +
                         tried.substr(1) + ")");
}

}  // namespace intaglio
