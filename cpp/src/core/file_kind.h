#pragma once

#include <filesystem>

namespace intaglio {

// Whether a path exists and is neither a regular file nor a folder. Such a path is written in
// place, because renaming a file over it would replace it.
inline bool is_device_or_pipe(const std::filesystem::file_status& status) {
  return std::filesystem::exists(status) && !std::filesystem::is_regular_file(status) &&
         !std::filesystem::is_directory(status);
}

}  // namespace intaglio
