#include "image/blur.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace intaglio {

namespace {

constexpr int kPasses = 3;

// The radius of a box filter, not a whole number, that has the Gaussian's variance after all
// passes.
float box_radius(double radius) {
  const double variance = radius * radius / kPasses;
  const double whole = std::floor((std::sqrt(12.0 * variance + 1.0) - 1.0) / 2.0);
  const double next = whole + 1.0;
  const double part =
      (2.0 * whole + 1.0) * (whole * next - 3.0 * variance) / (6.0 * (variance - next * next));
  return static_cast<float>(whole + part);
}

// A box filter: the pixels up to `whole` steps away have the weight `inner`, and the two after them
// the weight `outer`, in units of 2^-24.
struct Box {
  explicit Box(float radius)
      : whole(static_cast<std::int64_t>(radius)),
        inner(static_cast<std::uint32_t>((1U << 24U) / (radius * 2 + 1))),
        outer(((1U << 24U) - static_cast<std::uint32_t>(2 * whole + 1) * inner) / 2) {}

  std::int64_t whole;
  std::uint32_t inner, outer;
};

// Filters `count` values that are `stride` apart, from one line to the other.
void filter(const Box& box, const std::uint8_t* from, std::uint8_t* to, std::int64_t count,
            std::int64_t stride) {
  const auto at = [&](std::int64_t i) -> std::uint32_t {
    return from[std::clamp<std::int64_t>(i, 0, count - 1) * stride];
  };
  std::uint32_t sum = 0;
  for (std::int64_t i = -box.whole; i <= box.whole; ++i) sum += at(i);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t ends = at(i - box.whole - 1) + at(i + box.whole + 1);
    const std::uint32_t weighted = sum * box.inner + ends * box.outer;
    to[i * stride] = static_cast<std::uint8_t>((weighted + (1U << 23U)) >> 24U);
    sum += at(i + box.whole + 1) - at(i - box.whole);
  }
}

}  // namespace

void gaussian_blur(std::vector<std::uint8_t>& values, std::int64_t height, std::int64_t width,
                   double radius) {
  const Box box(box_radius(radius));
  std::vector<std::uint8_t> filtered(values.size());
  for (int pass = 0; pass < 2 * kPasses; ++pass) {
    const bool across = pass < kPasses;
    const std::int64_t lines = across ? height : width, next = across ? width : 1;
    for (std::int64_t line = 0; line < lines; ++line)
      filter(box, values.data() + line * next, filtered.data() + line * next,
             across ? width : height, across ? 1 : width);
    values.swap(filtered);
  }
}

}  // namespace intaglio
