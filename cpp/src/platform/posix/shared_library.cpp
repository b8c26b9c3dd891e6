#include "platform/shared_library.h"

#include <dlfcn.h>

#include <system_error>

namespace intaglio::platform {

namespace fs = std::filesystem;

const char* const kNvidiaDriver = "libcuda.so.1";
const char* const kNvidiaManagement = "libnvidia-ml.so.1";

std::string library_file(const std::string& stem, const std::string& version) {
  return "lib" + stem + ".so" + (version.empty() ? "" : "." + version);
}

void* load_library(const fs::path& library) {
  return ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
}

void* loaded_library(const fs::path& library) {
  void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  if (handle) ::dlclose(handle);
  return handle;
}

std::string load_error(const fs::path&) { return ::dlerror(); }

void unload_library(void* library) { ::dlclose(library); }

void* find_function(void* library, const char* name) { return ::dlsym(library, name); }

fs::path library_of(const void* address) {
  Dl_info info{};
  if (!::dladdr(address, &info) || !info.dli_fname) return {};
  std::error_code error;
  return fs::canonical(info.dli_fname, error);
}

}  // namespace intaglio::platform
