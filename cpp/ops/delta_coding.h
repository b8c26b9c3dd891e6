// The ops ai.intaglio::DeltaQuantize and DeltaDequantize of SPEC.md on plain memory. They do not
// depend on any runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace intaglio::ops {

// All arrays are dense and row-major. The caller must pass sizes that fit each other.
struct DeltaQuantizeInputs {
  std::span<const float> x;              // [F, T, K]
  std::span<const std::int64_t> anchor;  // [F]
  std::span<const float> kept;           // [K]
  std::size_t tokens = 0;                // T
};
struct DeltaQuantizeOutputs {
  std::span<std::uint8_t> quantized;  // [F, T, K]
  std::span<float> scale;             // [F, T, 1]
};

struct DeltaDequantizeInputs {
  std::span<const std::int32_t> product;  // [F, T, N]
  std::span<const float> scale;           // [F, T, 1]
  std::span<const float> columns;         // [N]
  std::span<const float> bias;            // [N]
  std::span<const std::int64_t> anchor;   // [F]
  std::size_t tokens = 0;                 // T
};

// Throws std::out_of_range that names the first value of `anchor` that is not an anchor: a row
// that names itself.
void check_anchor(std::span<const std::int64_t> anchor);

// Each computes the tokens [begin, end) of the F * T tokens, so that threads can share the work.
// The caller must have checked `anchor`, and no output may overlap an input.
void delta_quantize_tokens(const DeltaQuantizeInputs& inputs, const DeltaQuantizeOutputs& outputs,
                           std::size_t begin, std::size_t end);
void delta_dequantize_tokens(const DeltaDequantizeInputs& inputs, std::span<float> output,
                             std::size_t begin, std::size_t end);

}  // namespace intaglio::ops
