#pragma once

#include <filesystem>
#include <string>

#include "core/descriptor.h"

namespace intaglio {

// Returns the SHA-256 of a file's content in lower-case hexadecimal digits. Throws InputError when
// the file cannot be read.
std::string sha256_of_file(const std::filesystem::path& path);
// The same of an open file, from its start. Errors name `path`.
std::string sha256_of(const Descriptor& file, const std::filesystem::path& path);

}  // namespace intaglio
