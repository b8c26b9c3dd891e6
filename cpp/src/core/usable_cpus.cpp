#include "core/usable_cpus.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "platform/process.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

// The two numbers of a quota: microseconds of processor time in each period of microseconds. Where
// there is no limit, the time is negative or, in version 2, the word "max".
std::optional<double> quota_of(double time, double period) {
  if (time <= 0 || period <= 0) return {};
  return time / period;
}

std::optional<double> read_version_2(const fs::path& group) {
  double time = 0, period = 0;
  std::ifstream(group / "cpu.max") >> time >> period;
  return quota_of(time, period);
}

std::optional<double> read_version_1(const fs::path& group) {
  double time = 0, period = 0;
  std::ifstream(group / "cpu.cfs_quota_us") >> time;
  std::ifstream(group / "cpu.cfs_period_us") >> period;
  return quota_of(time, period);
}

std::string content_of(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

std::optional<double> cgroup_quota(const fs::path& mounts, const std::string& membership) {
  std::optional<double> least;
  std::istringstream lines(membership);
  for (std::string line; std::getline(lines, line);) {
    // "4:cpu,cpuacct:/group" in version 1, and "0::/group" in version 2.
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool version_2 = controllers.empty();
    if (!version_2 && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    const fs::path root = mounts / controllers;
    // In a container the groups around its own, and with version 1 also its own, are not there, but
    // the root is the container's.
    for (fs::path group = fs::path(line.substr(second + 1)).relative_path();;
         group = group.parent_path()) {
      const auto quota = version_2 ? read_version_2(root / group) : read_version_1(root / group);
      if (quota) least = std::min(*quota, least.value_or(*quota));
      if (group.empty()) break;
    }
  }
  return least;
}

int usable_cpus() {
  int count =
      platform::processors().value_or(static_cast<int>(std::thread::hardware_concurrency()));
  if (const auto quota = cgroup_quota("/sys/fs/cgroup", content_of("/proc/self/cgroup")))
    count = std::min(count, static_cast<int>(std::ceil(*quota)));
  return std::max(count, 1);
}

}  // namespace intaglio
