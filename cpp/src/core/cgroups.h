// Limits of the control groups that a process is in.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

namespace intaglio {

// Returns the limit of one group in its folder, or nothing. Versions 1 and 2 have other files.
using ReadLimit =
    std::function<std::optional<double>(const std::filesystem::path& group, bool version_2)>;

// Returns the smallest limit of the groups that `membership`, the text of /proc/self/cgroup, names
// for the controller, and of the groups around them; nothing where none has one. Their file systems
// are below `mounts`.
std::optional<double> least_limit(const std::filesystem::path& mounts,
                                  const std::string& membership, const std::string& controller,
                                  const ReadLimit& read);

// Returns the smallest limit of the groups of this process.
std::optional<double> own_limit(const std::string& controller, const ReadLimit& read);

}  // namespace intaglio
