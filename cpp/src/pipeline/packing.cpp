#include "pipeline/packing.h"

#include <cassert>

namespace intaglio {

namespace {

struct Grid {
  std::int64_t images, channels, rows, columns, patch;
};

// Calls visit(packed, unpacked) with the index of every value in both layouts.
template <typename Visitor>
void for_each_value(const Grid& grid, Visitor&& visit) {
  const auto [images, channels, rows, columns, patch] = grid;
  std::size_t packed = 0;
  for (std::int64_t n = 0; n < images; ++n)
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t column = 0; column < columns; ++column)
        for (std::int64_t c = 0; c < channels; ++c)
          for (std::int64_t dy = 0; dy < patch; ++dy)
            for (std::int64_t dx = 0; dx < patch; ++dx) {
              const std::int64_t y = (n * channels + c) * rows * patch + row * patch + dy;
              const std::int64_t x = column * patch + dx;
              visit(packed++, static_cast<std::size_t>(y * columns * patch + x));
            }
}

}  // namespace

Tensor pack(const Tensor& latents, std::int64_t patch) {
  const Grid grid{latents.dim(0), latents.dim(1), latents.dim(2) / patch, latents.dim(3) / patch,
                  patch};
  Tensor result({grid.images, grid.rows * grid.columns, grid.channels * patch * patch},
                DType::float32);
  assert(result.size() == latents.size());
  const auto from = latents.floats();
  const auto to = result.floats();
  for_each_value(grid, [&](std::size_t packed, std::size_t plain) { to[packed] = from[plain]; });
  return result;
}

Tensor unpack(const Tensor& packed, std::int64_t rows, std::int64_t columns, std::int64_t patch) {
  const Grid grid{packed.dim(0), packed.dim(2) / (patch * patch), rows, columns, patch};
  Tensor result({grid.images, grid.channels, rows * patch, columns * patch}, DType::float32);
  assert(result.size() == packed.size());
  const auto from = packed.floats();
  const auto to = result.floats();
  for_each_value(grid, [&](std::size_t index, std::size_t plain) { to[plain] = from[index]; });
  return result;
}

Tensor token_positions(std::int64_t rows, std::int64_t columns) {
  Tensor positions({rows * columns, 3}, DType::float32);
  auto value = positions.floats().begin();
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      *value++ = 0.0F;
      *value++ = static_cast<float>(row);
      *value++ = static_cast<float>(column);
    }
  }
  return positions;
}

}  // namespace intaglio
