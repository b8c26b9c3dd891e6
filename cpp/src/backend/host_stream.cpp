#include "backend/host_stream.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "core/guided_step.h"

namespace intaglio {

Tensor HostStream::allocate(const Shape& shape, DType dtype) {
  ++counts_.allocations;
  return Tensor(shape, dtype);
}

void HostStream::copy(const Tensor& from, Tensor to) {
  assert(from.size() == to.size() && from.dtype() == to.dtype());
  if (from.data() == to.data()) return;
  ++counts_.copies;
  counts_.copied_bytes += static_cast<std::int64_t>(from.bytes());
  std::memmove(to.data(), from.data(), from.bytes());
}

void HostStream::fill(Tensor to, float value) { std::ranges::fill(to.floats(), value); }

void HostStream::fill_keep(Tensor rows, const Tensor& token_mask, float ma_keep) {
  assert(rows.dim(1) == token_mask.size());
  const auto values = token_mask.floats();
  for (auto row = rows.floats(); !row.empty(); row = row.subspan(values.size())) {
    std::ranges::transform(values, row.begin(),
                           [ma_keep](float value) { return keep_value(ma_keep, value); });
  }
}

void HostStream::step(const GuidedStep& step) { run_on_host(step); }

}  // namespace intaglio
