#include "core/usable_memory.h"

#include <algorithm>
#include <fstream>

#include "core/cgroups.h"
#include "platform/process.h"

namespace intaglio {

namespace {

// Without a limit, version 2 has the word "max" and version 1 a number beyond any machine.
std::optional<double> read_limit(const std::filesystem::path& group, bool version_2) {
  double bytes = 0;
  std::ifstream(group / (version_2 ? "memory.max" : "memory.limit_in_bytes")) >> bytes;
  return bytes > 0 ? std::optional(bytes) : std::nullopt;
}

}  // namespace

std::uint64_t usable_memory() {
  const std::uint64_t available = platform::available_memory_bytes();
  const auto limit = own_limit("memory", read_limit);
  if (!limit) return available;
  return static_cast<std::uint64_t>(std::min(static_cast<double>(available), *limit));
}

}  // namespace intaglio
