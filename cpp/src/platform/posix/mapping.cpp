#include "platform/mapping.h"

#include <sys/mman.h>

namespace intaglio::platform {

std::span<char> map(int file, std::size_t bytes) {
  void* start = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
  if (start == MAP_FAILED) return {};
  return {static_cast<char*>(start), bytes};
}

void unmap(std::span<char> mapped) { ::munmap(mapped.data(), mapped.size()); }

}  // namespace intaglio::platform
