#include "platform/process.h"

#include "platform/windows/windows.h"

// After windows.h, whose types they use.
#include <psapi.h>
#include <shellapi.h>

#include <bit>
#include <cstdlib>

namespace intaglio::platform {

namespace fs = std::filesystem;

namespace {

constexpr double kSecondsPerTick = 1e-7;  // of a FILETIME

double seconds_of(const FILETIME& time) {
  const std::uint64_t ticks = std::uint64_t{time.dwHighDateTime} << 32U | time.dwLowDateTime;
  return static_cast<double>(ticks) * kSecondsPerTick;
}

}  // namespace

int process_id() { return static_cast<int>(::GetCurrentProcessId()); }

std::optional<int> processors() {
  DWORD_PTR process = 0, system = 0;
  if (!::GetProcessAffinityMask(::GetCurrentProcess(), &process, &system)) return {};
  return std::popcount(process);
}

std::optional<double> seconds_since_process_start() {
  FILETIME start{}, end{}, kernel{}, user{}, now{};
  if (!::GetProcessTimes(::GetCurrentProcess(), &start, &end, &kernel, &user)) return {};
  ::GetSystemTimeAsFileTime(&now);
  return seconds_of(now) - seconds_of(start);
}

std::optional<std::int64_t> peak_memory_bytes() {
  PROCESS_MEMORY_COUNTERS counters{};
  if (!::K32GetProcessMemoryInfo(::GetCurrentProcess(), &counters, sizeof(counters))) return {};
  return static_cast<std::int64_t>(counters.PeakWorkingSetSize);
}

std::uint64_t resident_memory_bytes() {
  PROCESS_MEMORY_COUNTERS counters{};
  if (!::K32GetProcessMemoryInfo(::GetCurrentProcess(), &counters, sizeof(counters))) return 0;
  return counters.WorkingSetSize;
}

std::uint64_t available_memory_bytes() {
  MEMORYSTATUSEX memory{};
  memory.dwLength = sizeof(memory);
  return ::GlobalMemoryStatusEx(&memory) ? memory.ullAvailPhys : 0;
}

void trim_memory() {}

std::string processor_name() {
  wchar_t name[256] = L"";
  DWORD bytes = sizeof(name);
  ::RegGetValueW(HKEY_LOCAL_MACHINE, L"HARDWARE\\DESCRIPTION\\System\\CentralProcessor\\0",
                 L"ProcessorNameString", RRF_RT_REG_SZ, nullptr, name, &bytes);
  return fs::path(name).string();
}

bool may_have_gpu() { return true; }

bool may_have_card_of(const std::string&) { return true; }

std::uint64_t physical_memory_bytes() {
  MEMORYSTATUSEX memory{};
  memory.dwLength = sizeof(memory);
  return ::GlobalMemoryStatusEx(&memory) ? memory.ullTotalPhys : 0;
}

// In the system's copy of the environment, because ONNX Runtime has a C library of its own.
void set_environment_default(const char* name, const char* value) {
  if (::GetEnvironmentVariableA(name, nullptr, 0) == 0) ::SetEnvironmentVariableA(name, value);
}

fs::path user_cache() {
  const wchar_t* folder = ::_wgetenv(L"LOCALAPPDATA");
  return folder ? fs::path(folder) : fs::path();
}

std::vector<std::string> begin_program(int, char**) {
  ::SetConsoleOutputCP(CP_UTF8);
  int count = 0;
  wchar_t** words = ::CommandLineToArgvW(::GetCommandLineW(), &count);
  std::vector<std::string> arguments;
  for (int i = 1; i < count; ++i) {
    const int bytes = ::WideCharToMultiByte(CP_UTF8, 0, words[i], -1, nullptr, 0, nullptr, nullptr);
    std::string word(static_cast<std::size_t>(bytes), '\0');
    ::WideCharToMultiByte(CP_UTF8, 0, words[i], -1, word.data(), bytes, nullptr, nullptr);
    word.pop_back();  // the zero at its end
    arguments.push_back(std::move(word));
  }
  ::LocalFree(words);
  return arguments;
}

}  // namespace intaglio::platform
