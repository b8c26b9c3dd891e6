#include "ops/delta_coding.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

// Compiles a function once for each width of vectors and takes the widest that the processor has
// when it is loaded, where the system's loader can choose. Every width computes the same values.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#define VECTORS [[gnu::target_clones("arch=skylake-avx512", "avx2", "default")]]
#else
#define VECTORS
#endif

namespace intaglio::ops {

namespace {

constexpr float kSteps = 127.0F;     // on either side of zero
constexpr std::int32_t kZero = 128;  // the integer that stands for zero
// The largest value of a token counts as at least this one, so that a token of zeros has a scale.
constexpr float kSmallest = 1e-30F;
// Adding 1.5 * 2^23 rounds a small number half to even and leaves it in the low bits.
constexpr float kRounds = 12582912.0F;

// Returns the bits of |value|. As integers they have the order of the values, and NaN is last.
std::int32_t magnitude(float value) { return std::bit_cast<std::int32_t>(value) & 0x7fffffff; }

// Returns the scale of a token. This file is compiled with -ffp-contract=off, so each operation is
// rounded once, as SPEC.md requires, and the compiler can vectorise the loops.
template <bool difference>
[[gnu::always_inline]] inline float quantize_token(const float* __restrict x,
                                                   const float* __restrict from,
                                                   const float* __restrict kept,
                                                   std::uint8_t* __restrict quantized,
                                                   std::size_t channels) {
  std::int32_t bits = magnitude(kSmallest);
  for (std::size_t k = 0; k < channels; ++k) {
    const float value = (difference ? x[k] - from[k] : x[k]) * kept[k];
    bits = std::max(bits, magnitude(value));
  }
  const auto largest = std::bit_cast<float>(bits);
  const float inverse = kSteps / largest;
  for (std::size_t k = 0; k < channels; ++k) {
    const float value = (difference ? x[k] - from[k] : x[k]) * kept[k];
    const float rounded = value * inverse + kRounds;
    quantized[k] = static_cast<std::uint8_t>(std::bit_cast<std::int32_t>(rounded) + kZero);
  }
  return largest / kSteps;
}

// Adds the output of the anchor, whose product is `from`, where the token is coded as a difference.
template <bool difference>
[[gnu::always_inline]] inline void dequantize_token(
    const std::int32_t* __restrict product, const std::int32_t* __restrict from, float scale,
    float from_scale, const float* __restrict columns, const float* __restrict bias,
    float* __restrict output, std::size_t channels) {
  for (std::size_t n = 0; n < channels; ++n) {
    const float own = static_cast<float>(product[n]) * scale * columns[n];
    if (difference) {
      output[n] = own + (static_cast<float>(from[n]) * from_scale * columns[n] + bias[n]);
    } else {
      output[n] = own + bias[n];
    }
  }
}

// A token, and the same token of its row's anchor.
struct Tokens {
  std::size_t own, anchor;
};
Tokens tokens_of(std::span<const std::int64_t> anchor, std::size_t tokens, std::size_t index) {
  const auto row = static_cast<std::size_t>(anchor[index / tokens]);
  return {.own = index, .anchor = row * tokens + index % tokens};
}

}  // namespace

void check_anchor(std::span<const std::int64_t> anchor) {
  for (std::size_t f = 0; f < anchor.size(); ++f) {
    const std::int64_t row = anchor[f];
    const bool inside = row >= 0 && static_cast<std::uint64_t>(row) < anchor.size();
    if (inside && anchor[static_cast<std::size_t>(row)] == row) continue;
    throw std::out_of_range("anchor[" + std::to_string(f) + "] is " + std::to_string(row) +
                            ", which is not a row that is its own anchor");
  }
}

VECTORS void delta_quantize_tokens(const DeltaQuantizeInputs& inputs,
                                   const DeltaQuantizeOutputs& outputs, std::size_t begin,
                                   std::size_t end) {
  const std::size_t channels = inputs.kept.size();
  const float* kept = inputs.kept.data();
  for (std::size_t i = begin; i < end; ++i) {
    const auto [own, anchor] = tokens_of(inputs.anchor, inputs.tokens, i);
    const float* x = inputs.x.data() + own * channels;
    const float* from = inputs.x.data() + anchor * channels;
    std::uint8_t* quantized = outputs.quantized.data() + own * channels;
    outputs.scale[own] = own == anchor ? quantize_token<false>(x, from, kept, quantized, channels)
                                       : quantize_token<true>(x, from, kept, quantized, channels);
  }
}

VECTORS void delta_dequantize_tokens(const DeltaDequantizeInputs& inputs, std::span<float> output,
                                     std::size_t begin, std::size_t end) {
  const std::size_t channels = inputs.columns.size();
  const float *columns = inputs.columns.data(), *bias = inputs.bias.data();
  for (std::size_t i = begin; i < end; ++i) {
    const auto [own, anchor] = tokens_of(inputs.anchor, inputs.tokens, i);
    const std::int32_t* product = inputs.product.data() + own * channels;
    const std::int32_t* from = inputs.product.data() + anchor * channels;
    const float scale = inputs.scale[own], from_scale = inputs.scale[anchor];
    float* y = output.data() + own * channels;
    if (own == anchor) {
      dequantize_token<false>(product, from, scale, from_scale, columns, bias, y, channels);
    } else {
      dequantize_token<true>(product, from, scale, from_scale, columns, bias, y, channels);
    }
  }
}

}  // namespace intaglio::ops
