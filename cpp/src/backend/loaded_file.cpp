#include "backend/loaded_file.h"

#include "platform/shared_library.h"

namespace intaglio {

std::filesystem::path own_library_folder() {
  static const char address_in_libintaglio = 0;
  return platform::library_of(&address_in_libintaglio).parent_path();
}

}  // namespace intaglio
