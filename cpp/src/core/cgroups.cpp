#include "core/cgroups.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

namespace intaglio {

namespace fs = std::filesystem;

std::optional<double> least_limit(const fs::path& mounts, const std::string& membership,
                                  const std::string& controller, const ReadLimit& read) {
  std::optional<double> least;
  std::istringstream lines(membership);
  for (std::string line; std::getline(lines, line);) {
    // "4:cpu,cpuacct:/group" in version 1, and "0::/group" in version 2.
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool version_2 = controllers.empty();
    if (!version_2 && ("," + controllers + ",").find("," + controller + ",") == std::string::npos)
      continue;
    const fs::path root = mounts / controllers;
    // In a container the groups around its own, and with version 1 also its own, are not there, but
    // the root is the container's.
    for (fs::path group = fs::path(line.substr(second + 1)).relative_path();;
         group = group.parent_path()) {
      const auto limit = read(root / group, version_2);
      if (limit) least = std::min(*limit, least.value_or(*limit));
      if (group.empty()) break;
    }
  }
  return least;
}

std::optional<double> own_limit(const std::string& controller, const ReadLimit& read) {
  std::ifstream file("/proc/self/cgroup");
  const std::string membership{std::istreambuf_iterator<char>(file), {}};
  return least_limit("/sys/fs/cgroup", membership, controller, read);
}

}  // namespace intaglio
