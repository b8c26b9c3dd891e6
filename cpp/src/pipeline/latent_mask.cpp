#include "pipeline/latent_mask.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "image/blur.h"

namespace intaglio {

namespace {

// Rounds ITU-R 601's luma as Pillow's convert("L") does.
std::vector<std::uint8_t> luma(const Image& picture) {
  std::vector<std::uint8_t> values(picture.pixels.size() / 3);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint8_t* rgb = &picture.pixels[3 * i];
    const int weighted = 19595 * rgb[0] + 38470 * rgb[1] + 7471 * rgb[2];
    values[i] = static_cast<std::uint8_t>((weighted + 32768) >> 16);
  }
  return values;
}

std::vector<std::uint8_t> blurred_luma(const Image& mask, double blur) {
  std::vector<std::uint8_t> values = luma(mask);
  if (blur > 0) gaussian_blur(values, mask.height, mask.width, blur);
  return values;
}

}  // namespace

bool is_blur(double radius) { return radius >= 0 && radius <= 1000; }

Image blurred_mask(const Image& mask, double blur) {
  Image grey{mask.width, mask.height, {}};
  grey.pixels.reserve(mask.pixels.size());
  for (const std::uint8_t value : blurred_luma(mask, blur))
    grey.pixels.insert(grey.pixels.end(), 3, value);
  return grey;
}

Tensor make_latent_mask(const Image& mask, double blur, std::int64_t channels, std::int64_t rows,
                        std::int64_t columns) {
  const std::vector<std::uint8_t> values = blurred_luma(mask, blur);
  Tensor result({1, channels, rows, columns}, DType::float32);
  const auto cells = result.floats();
  const auto plane = static_cast<std::size_t>(rows * columns);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      const std::int64_t y = row * mask.height / rows, x = column * mask.width / columns;
      const bool drawn = values[static_cast<std::size_t>(y * mask.width + x)] >= 128;
      cells[static_cast<std::size_t>(row * columns + column)] = drawn ? 1.0F : 0.0F;
    }
  }
  for (std::size_t at = plane; at < cells.size(); at += plane)
    std::ranges::copy(cells.first(plane), cells.begin() + static_cast<std::ptrdiff_t>(at));
  return result;
}

}  // namespace intaglio
