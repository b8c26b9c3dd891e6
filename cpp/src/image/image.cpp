#include "intaglio/image.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace intaglio {

namespace {

// Converts as diffusers' VaeImageProcessor does: (x / 2 + 0.5).clamp(0, 1), then (x * 255).round().
std::uint8_t to_byte(float value) {
  const float unit = std::clamp(value * 0.5F + 0.5F, 0.0F, 1.0F);
  // NaN becomes 0, as in NumPy.
  return std::isnan(unit) ? 0 : static_cast<std::uint8_t>(std::nearbyint(unit * 255.0F));
}

}  // namespace

std::vector<Image> to_images(const Tensor& tensor) {
  assert(tensor.shape().size() == 4 && tensor.dim(1) == 3);
  const auto plane = static_cast<std::size_t>(tensor.dim(2) * tensor.dim(3));
  std::vector<Image> images;
  for (std::int64_t n = 0; n < tensor.dim(0); ++n) {
    Image image{static_cast<int>(tensor.dim(3)), static_cast<int>(tensor.dim(2)), {}};
    image.pixels.resize(plane * 3);
    const auto source = tensor.rows(n, n + 1).floats();
    for (std::size_t channel = 0; channel < 3; ++channel) {
      for (std::size_t i = 0; i < plane; ++i) {
        image.pixels[i * 3 + channel] = to_byte(source[channel * plane + i]);
      }
    }
    images.push_back(std::move(image));
  }
  return images;
}

Tensor from_image(const Image& image) {
  Tensor tensor({1, 3, image.height, image.width}, DType::float32);
  const auto target = tensor.floats();
  const std::size_t plane = target.size() / 3;
  for (std::size_t channel = 0; channel < 3; ++channel) {
    for (std::size_t i = 0; i < plane; ++i) {
      target[channel * plane + i] =
          2.0F * (static_cast<float>(image.pixels[i * 3 + channel]) / 255.0F) - 1.0F;
    }
  }
  return tensor;
}

}  // namespace intaglio
