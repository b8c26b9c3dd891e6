// Files that a command writes.
#pragma once

#include <filesystem>

namespace intaglio::cli {

// Throws InputError now rather than after minutes of work. An empty path is fine.
void check_writable(const std::filesystem::path& path);
// OUT.png for a single image, else OUT-<index>.png.
std::filesystem::path numbered(const std::filesystem::path& path, std::size_t index,
                               std::size_t count);

}  // namespace intaglio::cli
