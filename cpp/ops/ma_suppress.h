// The op ai.intaglio::MASuppress on plain memory: what SPEC.md says, and the reference that other
// implementations are tested against. Knows no runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace intaglio::ops {

// Dense and row-major. Sizes that contradict each other are the caller's bug.
struct MASuppressInputs {
  std::span<const float> hidden;         // [B, T, C]
  std::span<const float> mask;           // [C]
  std::span<const float> ref;            // [C]
  std::span<const std::int64_t> branch;  // [F]
  std::span<const float> keep;           // [F, T]
  std::size_t rows = 0;                  // B
  std::size_t tokens = 0;                // T
};

// Throws std::out_of_range naming the first value of `branch` outside [0, rows).
void check_branch(std::span<const std::int64_t> branch, std::size_t rows);

// The tokens [begin, end) of the F * T in `output` [F, T, C], so that threads can share the work.
// `branch` has been checked; `output` overlaps no input.
void ma_suppress_tokens(const MASuppressInputs& inputs, std::span<float> output, std::size_t begin,
                        std::size_t end);

// All of it, checked. `output` is [F, T, C].
void ma_suppress(const MASuppressInputs& inputs, std::span<float> output);

}  // namespace intaglio::ops
