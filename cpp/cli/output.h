// Files that a command writes.
#pragma once

#include <filesystem>
#include <vector>

namespace intaglio::cli {

// Throws InputError for a path that cannot be written and UsageError for one that is named twice:
// now rather than after minutes of work.
void check_outputs(const std::vector<std::filesystem::path>& paths);
// OUT.png for a single image, else OUT-<index>.png.
std::filesystem::path numbered(const std::filesystem::path& path, std::size_t index,
                               std::size_t count);

}  // namespace intaglio::cli
