#include "platform/mapping.h"

#include <io.h>

#include <cstdint>

#include "platform/windows/error.h"

namespace intaglio::platform {

std::span<char> map(int file, std::size_t bytes) {
  const auto handle = reinterpret_cast<HANDLE>(::_get_osfhandle(file));
  const HANDLE mapping = ::CreateFileMappingW(handle, nullptr, PAGE_READONLY, 0, 0, nullptr);
  void* start = mapping ? ::MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, bytes) : nullptr;
  if (!start) set_errno();
  if (mapping) ::CloseHandle(mapping);  // the view keeps it
  if (!start) return {};
  return {static_cast<char*>(start), bytes};
}

void unmap(std::span<char> mapped) { ::UnmapViewOfFile(mapped.data()); }

}  // namespace intaglio::platform
