#include "core/usable_cpus.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

#include "core/cgroups.h"
#include "platform/process.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

// The two numbers of a quota: microseconds of processor time in each period of microseconds. Where
// there is no limit, the time is negative or, in version 2, the word "max".
std::optional<double> read_quota(const fs::path& group, bool version_2) {
  double time = 0, period = 0;
  if (version_2) {
    std::ifstream(group / "cpu.max") >> time >> period;
  } else {
    std::ifstream(group / "cpu.cfs_quota_us") >> time;
    std::ifstream(group / "cpu.cfs_period_us") >> period;
  }
  if (time <= 0 || period <= 0) return {};
  return time / period;
}

}  // namespace

std::optional<double> cgroup_quota(const fs::path& mounts, const std::string& membership) {
  return least_limit(mounts, membership, "cpu", read_quota);
}

int usable_cpus() {
  int count =
      platform::processors().value_or(static_cast<int>(std::thread::hardware_concurrency()));
  if (const auto quota = own_limit("cpu", read_quota))
    count = std::min(count, static_cast<int>(std::ceil(*quota)));
  return std::max(count, 1);
}

}  // namespace intaglio
