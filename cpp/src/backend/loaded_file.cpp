#include "backend/loaded_file.h"

#include <dlfcn.h>

#include <system_error>

namespace intaglio {

namespace fs = std::filesystem;

fs::path file_of(const void* address) {
  Dl_info info{};
  if (!dladdr(address, &info) || !info.dli_fname) return {};
  std::error_code error;
  return fs::canonical(info.dli_fname, error);
}

fs::path own_folder() {
  static const char here = 0;
  return file_of(&here).parent_path();
}

}  // namespace intaglio
