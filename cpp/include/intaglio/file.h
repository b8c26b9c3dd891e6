// Reads and writes whole files.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace intaglio {

// Throws InputError naming the file and the system's error.
std::string read_file(const std::filesystem::path& path);

// Writes a file under a temporary name beside `path`, then renames it. A failure leaves nothing
// behind. Throws InputError naming the file and the system's error.
void write_file(const std::filesystem::path& path, std::string_view content);

// Returns whether a path exists and is neither a regular file nor a folder. write_file writes in
// place to such a path, because a rename would replace it.
bool is_device_or_pipe(const std::filesystem::file_status& status);

}  // namespace intaglio
