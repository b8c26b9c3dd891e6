#include "backend/loaded_file.h"

#include <dlfcn.h>

#include <system_error>

namespace intaglio {

namespace fs = std::filesystem;

fs::path library_of(const void* address) {
  Dl_info info{};
  if (!dladdr(address, &info) || !info.dli_fname) return {};
  std::error_code error;
  return fs::canonical(info.dli_fname, error);
}

fs::path own_library_folder() {
  static const char address_in_libintaglio = 0;
  return library_of(&address_in_libintaglio).parent_path();
}

}  // namespace intaglio
