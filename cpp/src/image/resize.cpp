#include "image/resize.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <numeric>

namespace intaglio {

namespace {

constexpr double kLobes = 3;
constexpr int kBits = 22;  // weights are in units of 2^-22

double sinc(double x) {
  const double angle = x * std::numbers::pi;
  return x == 0 ? 1 : std::sin(angle) / angle;
}

double lanczos(double x) { return x >= -kLobes && x < kLobes ? sinc(x) * sinc(x / kLobes) : 0; }

// The values of the old line that one of the new line is made of.
struct Window {
  std::int64_t first = 0;
  std::vector<std::int32_t> weights;
};

std::vector<Window> windows(int from, int to) {
  const double scale = static_cast<double>(from) / to;
  const double stretch = std::max(scale, 1.0), support = kLobes * stretch;
  std::vector<Window> windows(static_cast<std::size_t>(to));
  for (int i = 0; i < to; ++i) {
    const double centre = (i + 0.5) * scale;
    const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int last = std::min(static_cast<int>(centre + support + 0.5), from);
    std::vector<double> values;
    for (int at = first; at < last; ++at)
      values.push_back(lanczos((at - centre + 0.5) * (1 / stretch)));
    const double sum = std::accumulate(values.begin(), values.end(), 0.0);
    Window& window = windows[static_cast<std::size_t>(i)];
    window.first = first;
    for (const double value : values)
      window.weights.push_back(
          static_cast<std::int32_t>(std::lround(value * (1 / sum) * (1 << kBits))));
  }
  return windows;
}

// Resamples one line of values that are `stride` apart.
void resample(const std::vector<Window>& windows, const std::uint8_t* from, std::uint8_t* to,
              std::int64_t stride) {
  for (std::size_t i = 0; i < windows.size(); ++i) {
    std::int64_t sum = std::int64_t{1} << (kBits - 1);
    const std::uint8_t* value = from + windows[i].first * stride;
    for (const std::int32_t weight : windows[i].weights) {
      sum += static_cast<std::int64_t>(*value) * weight;
      value += stride;
    }
    to[static_cast<std::int64_t>(i) * stride] =
        static_cast<std::uint8_t>(std::clamp<std::int64_t>(sum >> kBits, 0, 255));
  }
}

Image with_width(const Image& image, int width) {
  Image result{width, image.height, {}};
  result.pixels.resize(static_cast<std::size_t>(width) * static_cast<std::size_t>(image.height) *
                       3);
  const std::vector<Window> columns = windows(image.width, width);
  for (std::int64_t row = 0; row < image.height; ++row)
    for (std::int64_t channel = 0; channel < 3; ++channel)
      resample(columns, image.pixels.data() + row * image.width * 3 + channel,
               result.pixels.data() + row * width * 3 + channel, 3);
  return result;
}

Image with_height(const Image& image, int height) {
  Image result{image.width, height, {}};
  result.pixels.resize(static_cast<std::size_t>(image.width) * static_cast<std::size_t>(height) *
                       3);
  const std::vector<Window> rows = windows(image.height, height);
  const std::int64_t line = std::int64_t{3} * image.width;
  for (std::int64_t i = 0; i < line; ++i)
    resample(rows, image.pixels.data() + i, result.pixels.data() + i, line);
  return result;
}

}  // namespace

Image resize(const Image& image, int width, int height) {
  if (image.width == width) return image.height == height ? image : with_height(image, height);
  if (image.height == height) return with_width(image, width);
  // The order of the passes decides where values are rounded. This is that of Pillow 13.
  const int narrower = std::max(image.width - width, 0);
  if (image.height - height > 2 * narrower) return with_width(with_height(image, height), width);
  return with_height(with_width(image, width), height);
}

Image crop_middle(const Image& image, int width, int height) {
  assert(width <= image.width && height <= image.height);
  const std::int64_t left = (image.width - width) / 2, top = (image.height - height) / 2;
  Image result{width, height, {}};
  for (std::int64_t row = 0; row < height; ++row) {
    const auto first = image.pixels.begin() + ((top + row) * image.width + left) * 3;
    result.pixels.insert(result.pixels.end(), first, first + std::int64_t{3} * width);
  }
  return result;
}

}  // namespace intaglio
