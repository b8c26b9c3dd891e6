#pragma once

#include <filesystem>
#include <string>

namespace intaglio {

// Lower-case hexadecimal SHA-256 of a file's content. Throws InputError when it cannot be read.
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace intaglio
