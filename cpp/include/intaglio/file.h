// Reading and writing whole files.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace intaglio {

// Throws InputError naming the file and what the system says.
std::string read_file(const std::filesystem::path& path);

// Writes under a temporary name beside `path`, then renames; on failure leaves nothing behind.
// Throws InputError naming the file and what the system says.
void write_file(const std::filesystem::path& path, std::string_view content);

}  // namespace intaglio
