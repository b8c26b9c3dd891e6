#include "platform/process.h"

#include <malloc.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>
#include <sstream>
#include <system_error>

namespace intaglio::platform {

namespace fs = std::filesystem;

int process_id() { return ::getpid(); }

std::optional<int> processors() {
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return {};
  return CPU_COUNT(&set);
}

std::optional<double> seconds_since_process_start() {
  std::ifstream stream("/proc/self/stat");
  const std::string stat{std::istreambuf_iterator<char>(stream), {}};
  // The name of the program is in parentheses and may contain spaces. The start time is the 20th
  // field after it.
  std::istringstream fields(stat.substr(stat.rfind(')') + 1));
  std::string field;
  for (int i = 0; i < 20; ++i) fields >> field;
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  if (!fields) return {};  // /proc is missing in a chroot
  const double start = std::stod(field) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9 - start;
}

namespace {

// Returns the value of a line such as "VmHWM:  1234 kB" in bytes, or nothing.
std::optional<std::int64_t> bytes_in(const char* file, const char* line) {
  std::ifstream stream(file);
  for (std::string word; stream >> word;) {
    std::int64_t kilobytes = 0;
    if (word == line && stream >> kilobytes) return kilobytes * 1024;
  }
  return {};
}

}  // namespace

std::optional<std::int64_t> peak_memory_bytes() {
  // getrusage does not fit, because its maximum includes the process that called exec.
  return bytes_in("/proc/self/status", "VmHWM:");
}

std::uint64_t resident_memory_bytes() {
  return static_cast<std::uint64_t>(bytes_in("/proc/self/status", "VmRSS:").value_or(0));
}

std::uint64_t available_memory_bytes() {
  auto free = static_cast<std::uint64_t>(bytes_in("/proc/meminfo", "MemAvailable:").value_or(0));
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    free = std::min<std::uint64_t>(free, limit.rlim_cur);
  return free;
}

void trim_memory() {
#ifdef __GLIBC__
  ::malloc_trim(0);
#endif
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name"))
      return line.substr(std::min(line.find(": ") + 2, line.size()));
  }
  return "";
}

bool may_have_gpu() {
  std::error_code error;
  return fs::exists("/dev/dri", error) || fs::exists("/dev/dxg", error);
}

// In WSL and on NVIDIA's boards the GPU is not on the PCI bus.
bool may_have_card_of(const std::string& vendor) {
  const fs::path bus = "/sys/bus/pci/devices";
  std::error_code error;
  for (const char* elsewhere : {"/dev/dxg", "/dev/nvhost-gpu", "/dev/nvmap"})
    if (fs::exists(elsewhere, error)) return true;
  if (!fs::exists(bus, error)) return true;
  const auto first_word = [](const fs::path& file) {
    std::string word;
    std::ifstream(file) >> word;
    return word;
  };
  for (const auto& entry : fs::directory_iterator(bus, error)) {
    const std::string kind = first_word(entry.path() / "class");
    const bool is_card = kind.starts_with("0x03") || kind.starts_with("0x12");
    if (is_card && first_word(entry.path() / "vendor") == vendor) return true;
  }
  return static_cast<bool>(error);
}

std::uint64_t physical_memory_bytes() {
  const long pages = ::sysconf(_SC_PHYS_PAGES), bytes = ::sysconf(_SC_PAGE_SIZE);
  return pages < 0 || bytes < 0 ? 0 : static_cast<std::uint64_t>(pages) * bytes;
}

void set_environment_default(const char* name, const char* value) { ::setenv(name, value, 0); }

// By the XDG base directory specification, which ignores relative paths.
fs::path user_cache() {
  const auto absolute = [](const char* name) {
    const char* value = std::getenv(name);
    return value && *value == '/' ? fs::path(value) : fs::path();
  };
  if (const fs::path given = absolute("XDG_CACHE_HOME"); !given.empty()) return given;
  const fs::path home = absolute("HOME");
  return home.empty() ? home : home / ".cache";
}

std::vector<std::string> begin_program(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);
  return {argv + 1, argv + argc};
}

}  // namespace intaglio::platform
