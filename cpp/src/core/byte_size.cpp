#include "core/byte_size.h"

#include <algorithm>
#include <cstdint>

namespace intaglio {

bool has_byte_size(const Shape& shape, std::size_t item_size, std::size_t bytes) {
  if (std::ranges::find(shape, 0) != shape.end()) return bytes == 0;
  std::size_t remaining = bytes / item_size;
  for (const std::int64_t size : shape) {
    if (remaining % static_cast<std::size_t>(size) != 0) return false;
    remaining /= static_cast<std::size_t>(size);
  }
  return remaining == 1 && bytes % item_size == 0;
}

}  // namespace intaglio
