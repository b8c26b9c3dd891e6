#include "text/padding.h"

#include <algorithm>
#include <utility>

namespace intaglio {

Tokens end_and_pad(std::vector<std::int64_t> ids, std::int64_t eos, std::int64_t pad, int length) {
  const auto size = static_cast<std::size_t>(length);
  const bool truncated = ids.size() > size - 1;
  ids.resize(std::min(ids.size(), size - 1));
  ids.push_back(eos);
  const int used = static_cast<int>(ids.size());
  ids.resize(size, pad);
  return {.ids = std::move(ids), .begin = 0, .used = used, .truncated = truncated};
}

}  // namespace intaglio
