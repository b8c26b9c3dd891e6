#include "pipeline/latent_mask.h"

#include <algorithm>
#include <cstddef>

namespace intaglio {

namespace {

// Rounds ITU-R 601's luma as Pillow's convert("L") does.
int luma(const std::uint8_t* pixel) {
  return (19595 * pixel[0] + 38470 * pixel[1] + 7471 * pixel[2] + 32768) >> 16;
}

}  // namespace

Tensor make_latent_mask(const Image& mask, std::int64_t channels, std::int64_t rows,
                        std::int64_t columns) {
  Tensor result({1, channels, rows, columns}, DType::float32);
  const auto cells = result.floats();
  const auto plane = static_cast<std::size_t>(rows * columns);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      const std::int64_t y = row * mask.height / rows, x = column * mask.width / columns;
      const bool drawn =
          luma(&mask.pixels[static_cast<std::size_t>(3 * (y * mask.width + x))]) >= 128;
      cells[static_cast<std::size_t>(row * columns + column)] = drawn ? 1.0F : 0.0F;
    }
  }
  for (std::size_t at = plane; at < cells.size(); at += plane)
    std::ranges::copy(cells.first(plane), cells.begin() + static_cast<std::ptrdiff_t>(at));
  return result;
}

}  // namespace intaglio
