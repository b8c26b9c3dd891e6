#pragma once

#include <filesystem>

namespace intaglio {

// Returns the folder of libintaglio.
std::filesystem::path own_library_folder();

}  // namespace intaglio
