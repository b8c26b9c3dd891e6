// Reads and writes whole files.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace intaglio {

// Throws InputError naming the file and the system's error.
std::string read_file(const std::filesystem::path& path);

// Writes a file under a temporary name beside `path`, then renames it, so that a failure leaves
// nothing behind. What a rename cannot replace or would destroy is written into: a device, a pipe,
// /dev/stdout, a file that is a mount of its own or whose folder cannot be written. Throws
// InputError naming the file and the system's error.
void write_file(const std::filesystem::path& path, std::string_view content);

// Throws the InputError that write_file would throw for a path that cannot be written, as far as
// that is known without trying.
void check_writable(const std::filesystem::path& path);

// Returns whether a path exists and is neither a regular file nor a folder.
bool is_device_or_pipe(const std::filesystem::file_status& status);

// Returns N where the path leads to /dev/fd/N, which is the descriptor N of this process;
// /dev/stdout leads to 1.
std::optional<int> own_descriptor(const std::filesystem::path& path);

}  // namespace intaglio
