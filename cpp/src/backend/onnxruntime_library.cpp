#include "backend/onnxruntime_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "backend/loaded_file.h"
#include "backend/ort_api.h"
#include "intaglio/error.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

// libonnxruntime.so, or the versioned name that the Python wheel carries.
std::vector<fs::path> libraries_in(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().filename().string().starts_with("libonnxruntime.so"))
      found.push_back(entry.path());
  }
  return found;
}

std::vector<fs::path> candidates(const fs::path& library) {
  if (!library.empty()) return {library};
  const fs::path own = own_folder();
  std::vector<fs::path> paths = libraries_in(own);
  // Installed by pip: site-packages/intaglio/lib beside site-packages/onnxruntime/capi.
  for (const fs::path& path : libraries_in(own / "../../onnxruntime/capi")) paths.push_back(path);
  paths.emplace_back("libonnxruntime.so.1");
  paths.emplace_back("libonnxruntime.so");
  return paths;
}

// A process holds one ONNX Runtime; the linker knows whether another name means the same file.
void check_same(const fs::path& library, const void* loaded, const std::string& loaded_from) {
  if (library.empty()) return;
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  if (handle) dlclose(handle);
  if (handle == loaded) return;
  throw UnavailableError("this process has loaded ONNX Runtime from " + loaded_from +
                         " and cannot take " + library.string() +
                         " as well: give the same library, or start another process");
}

}  // namespace

fs::path ops_library() {
  const fs::path own = own_folder();
  const fs::path path = own / "libintaglio_ops.so";
  std::error_code error;
  return !own.empty() && fs::exists(path, error) ? path : fs::path();
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
  // Its packages since 1.29 report each session to their maker and keep an identifier in the user's
  // home. A program that draws pictures does not, unless its user has set this to something else.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  std::string tried;
  for (const fs::path& path : candidates(library)) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
      tried += "; " + std::string(dlerror());
      continue;
    }
    const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
    const OrtApi* api = base ? base()->GetApi(ORT_API_VERSION) : nullptr;
    if (api) {
      Ort::InitApi(api);
      runtime = {base()->GetVersionString(), file_of(reinterpret_cast<const void*>(base))};
      loaded = handle;
      loaded_from = path.string();
      return runtime;
    }
    tried += "; " + path.string() +
             (base ? " is older than version 1." + std::to_string(ORT_API_VERSION)
                   : " is not ONNX Runtime");
    dlclose(handle);
  }
  throw UnavailableError(
      "no usable ONNX Runtime library: give --onnxruntime LIBRARY (onnxruntime_library in a "
      "program), "
      "or put libonnxruntime.so.1 where the loader looks (tried" +
      tried.substr(1) + ")");
}

}  // namespace intaglio
