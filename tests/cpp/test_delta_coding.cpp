// Compares the loops of DeltaQuantize and DeltaDequantize with the formulas of SPEC.md.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

#include "ops/delta_coding.h"

namespace intaglio::ops {
namespace {

// Three rows: an anchor, a difference from it and another anchor.
const std::vector<std::int64_t> kAnchor{0, 0, 2};

TEST(DeltaCoding, FollowsTheSpecification) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (std::size_t channels = 1; channels < 40; ++channels) {
    constexpr std::size_t tokens = 3;
    const std::size_t count = kAnchor.size() * tokens;
    std::vector<float> x(count * channels), kept(channels), scale(count);
    std::vector<std::uint8_t> quantized(x.size());
    for (float& value : x) value = normal(random) * 30.0F;
    for (float& value : kept) value = random() % 4 ? 1.0F : 0.0F;
    delta_quantize_tokens({x, kAnchor, kept, tokens}, {quantized, scale}, 0, 4);
    delta_quantize_tokens({x, kAnchor, kept, tokens}, {quantized, scale}, 4, count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t row = i / tokens;
      const auto from = static_cast<std::size_t>(kAnchor[row]) * tokens + i % tokens;
      const auto value = [&](std::size_t k) {
        return (from == i ? x[i * channels + k] : x[i * channels + k] - x[from * channels + k]) *
               kept[k];
      };
      float largest = 1e-30F;
      for (std::size_t k = 0; k < channels; ++k) largest = std::max(largest, std::abs(value(k)));
      ASSERT_EQ(scale[i], largest / 127.0F);
      const volatile float inverse = 127.0F / largest;
      for (std::size_t k = 0; k < channels; ++k) {
        const volatile float scaled = value(k) * inverse;
        ASSERT_EQ(quantized[i * channels + k], 128 + std::nearbyint(scaled)) << channels;
      }
    }
  }
}

TEST(DeltaCoding, AddsTheBiasToAnchorsAndTheirOutputToOthers) {
  const std::vector<std::int32_t> product{10, -20, 1, 2, 7, 8};  // one token of two channels a row
  const std::vector<float> scale{0.5F, 0.25F, 1.0F}, columns{2.0F, 1.0F}, bias{0.0F, 4.0F};
  std::vector<float> output(product.size());
  delta_dequantize_tokens({product, scale, columns, bias, kAnchor, 1}, output, 0, 3);
  EXPECT_EQ(output, (std::vector<float>{10.0F, -6.0F, 10.5F, -5.5F, 14.0F, 12.0F}));
}

TEST(DeltaCoding, RefusesAnchorsThatAreNone) {
  EXPECT_NO_THROW(check_anchor(kAnchor));
  for (const std::vector<std::int64_t>& wrong :
       {std::vector<std::int64_t>{0, 3, 2}, {0, -1, 2}, {0, 0, 1}})
    EXPECT_THROW(check_anchor(wrong), std::out_of_range);
}

}  // namespace
}  // namespace intaglio::ops
