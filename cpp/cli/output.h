// The files that a subcommand writes.
#pragma once

#include <filesystem>
#include <vector>

namespace intaglio::cli {

// Throws InputError for a path that cannot be written, and UsageError for one that is given twice.
// Subcommands call it before they start to work, which can take minutes.
void check_outputs(const std::vector<std::filesystem::path>& paths);
// Prints the name of a file that was written, unless it is standard output itself.
void print_written(const std::filesystem::path& path);
// Returns `path` when there is one image, and otherwise the path with -<index> before its
// extension.
std::filesystem::path numbered(const std::filesystem::path& path, std::size_t index,
                               std::size_t count);

}  // namespace intaglio::cli
