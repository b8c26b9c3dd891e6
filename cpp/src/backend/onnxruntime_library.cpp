#include "backend/onnxruntime_library.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "backend/loaded_file.h"
#include "backend/ort_api.h"
#include "intaglio/error.h"
#include "intaglio/file.h"
#include "platform/process.h"
#include "platform/shared_library.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

// Returns the files named libonnxruntime.so, or libonnxruntime.so with a version as in the Python
// wheel. On Windows the name is onnxruntime.dll.
std::vector<fs::path> libraries_in(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().filename().string().starts_with(platform::library_file("onnxruntime")))
      found.push_back(entry.path());
  }
  return found;
}

// Returns the libraries of the package, the best first: the build for NVIDIA's GPUs, whose file
// names the function that takes its provider, then the one whose name sorts last.
std::vector<fs::path> package_libraries(const fs::path& folder) {
  std::vector<fs::path> found = libraries_in(folder);
  std::ranges::sort(found, std::greater<>());
  if (found.size() > 1) {
    std::ranges::stable_partition(found, [](const fs::path& path) {
      return read_file(path).find("OrtSessionOptionsAppendExecutionProvider_CUDA") !=
             std::string::npos;
    });
  }
  return found;
}

// Whether a version such as "1.23.2" has the interface that Intaglio was built with.
bool is_new_enough(const std::string& version) {
  int major = 0, minor = 0;
  const bool read = std::sscanf(version.c_str(), "%d.%d", &major, &minor) == 2;
  return !read || major > 1 || minor >= ORT_API_VERSION;
}

// Returns the libraries to try, in order.
std::vector<fs::path> candidates(const fs::path& library) {
  if (!library.empty()) return {library};
  const fs::path own = own_library_folder();
  std::vector<fs::path> paths = libraries_in(own);
  // pip installs site-packages/intaglio/lib beside site-packages/onnxruntime/capi.
  for (const fs::path& path : package_libraries(own / "../../onnxruntime/capi"))
    paths.push_back(path);
  for (const char* version : {"1", ""})
    paths.emplace_back(platform::library_file("onnxruntime", version));
  return paths;
}

// Throws UnavailableError when `library` is not the one that this process has loaded, because a
// process can hold only one. The dynamic linker knows whether two names mean the same file.
void check_same(const fs::path& library, const void* loaded, const std::string& loaded_from) {
  if (library.empty()) return;
  if (platform::loaded_library(library) == loaded) return;
  throw UnavailableError("this process has loaded ONNX Runtime from " + loaded_from +
                         " and cannot load " + library.string() +
                         " as well: give the same library, or start another process");
}

}  // namespace

fs::path ops_library() {
  const fs::path own = own_library_folder();
  const fs::path path = own / platform::library_file("intaglio_ops");
  std::error_code error;
  return !own.empty() && fs::exists(path, error) ? path : fs::path();
}

fs::path onnxruntime_packages() {
  const fs::path capi = load_onnxruntime({}).path.parent_path();
  const bool in_package =
      capi.filename() == "capi" && capi.parent_path().filename() == "onnxruntime";
  return in_package ? capi.parent_path().parent_path() : fs::path();
}

const OnnxRuntimeLibrary& load_onnxruntime(const fs::path& library) {
  static std::mutex mutex;
  static OnnxRuntimeLibrary runtime;
  static const void* loaded = nullptr;
  static std::string loaded_from;
  const std::scoped_lock lock(mutex);
  if (loaded) {
    check_same(library, loaded, loaded_from);
    return runtime;
  }
  // Since version 1.29 ONNX Runtime's packages report every session to Microsoft and store an
  // identifier in the user's home. Intaglio turns that off unless the user has set this variable.
  platform::set_environment_default("ORT_DISABLE_TELEMETRY", "1");
  std::string tried;
  for (const fs::path& path : candidates(library)) {
    void* handle = platform::load_library(path);
    if (!handle) {
      tried += "; " + platform::load_error(path);
      continue;
    }
    const auto base =
        reinterpret_cast<const OrtApiBase* (*)()>(platform::find_function(handle, "OrtGetApiBase"));
    // An older one would print a message of its own when it is asked for this version.
    const bool fits = base && is_new_enough(base()->GetVersionString());
    const OrtApi* api = fits ? base()->GetApi(ORT_API_VERSION) : nullptr;
    if (api) {
      Ort::InitApi(api);
      runtime = {base()->GetVersionString(),
                 platform::library_of(reinterpret_cast<const void*>(base))};
      loaded = handle;
      loaded_from = path.string();
      return runtime;
    }
    tried +=
        "; " + path.string() +
        (base ? " is ONNX Runtime " + std::string(base()->GetVersionString()) + ", and version 1." +
                    std::to_string(ORT_API_VERSION) + " or newer is needed"
              : " is not ONNX Runtime");
    platform::unload_library(handle);
  }
  throw UnavailableError(
      "no usable ONNX Runtime library: give --onnxruntime LIBRARY (onnxruntime_library in a "
      "program), or put " +
      platform::library_file("onnxruntime", "1") + " where the dynamic loader finds it (tried" +
      tried.substr(1) + ")");
}

}  // namespace intaglio
