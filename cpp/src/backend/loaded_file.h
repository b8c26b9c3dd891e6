// Paths of libraries that this process has loaded.
#pragma once

#include <filesystem>

namespace intaglio {

// Returns the file that `address` was loaded from, or an empty path.
std::filesystem::path library_of(const void* address);
// Returns the folder of libintaglio.
std::filesystem::path own_library_folder();

}  // namespace intaglio
