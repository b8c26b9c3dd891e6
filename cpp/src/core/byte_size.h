#pragma once

#include <cstddef>

#include "intaglio/tensor.h"

namespace intaglio {

// Whether a tensor of `shape`, none of whose sizes is negative, with elements of `item_size` bytes
// has exactly `bytes` bytes. It divides instead of multiplying, because the product can overflow
// for a shape that comes from a damaged file.
bool has_byte_size(const Shape& shape, std::size_t item_size, std::size_t bytes);

}  // namespace intaglio
