// Where libraries that this process has loaded lie.
#pragma once

#include <filesystem>

namespace intaglio {

// The file that `address` was loaded from, or an empty path.
std::filesystem::path file_of(const void* address);
// That of libintaglio.
std::filesystem::path own_folder();

}  // namespace intaglio
