// How many processors this process may use.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace intaglio {

// Returns the number of processors that the process may run on, by its affinity and by the quotas
// of its control groups, rounded up; at least 1. A container often has fewer than the machine.
int usable_cpus();

// Returns the smallest quota, in processors, of the control groups that `membership`, the text of
// /proc/self/cgroup, names, and of the groups around them; nothing where none has a quota. Their
// file systems are below `mounts`.
std::optional<double> cgroup_quota(const std::filesystem::path& mounts,
                                   const std::string& membership);

}  // namespace intaglio
