// The op ai.intaglio::MASuppress of SPEC.md on plain memory. Other implementations are tested
// against this one. It does not depend on any runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace intaglio::ops {

// All arrays are dense and row-major. The caller must pass sizes that fit each other.
struct MASuppressInputs {
  std::span<const float> hidden;         // [B, T, C]
  std::span<const float> mask;           // [C]
  std::span<const float> ref;            // [C]
  std::span<const std::int64_t> branch;  // [F]
  std::span<const float> keep;           // [F, T]
  std::span<const std::int64_t> source;  // [F, T], or empty, which is 0 everywhere
  std::size_t rows = 0;                  // B
  std::size_t tokens = 0;                // T
};

// Throws std::out_of_range that names the first value of `branch` outside [0, rows).
void check_branch(std::span<const std::int64_t> branch, std::size_t rows);

// Throws std::out_of_range that names the first value of `source` outside [0, tokens], where
// `tokens` counts those of all rows of hidden.
void check_source(std::span<const std::int64_t> source, std::size_t tokens);

// Computes the tokens [begin, end) of the F * T tokens in `output` [F, T, C], so that threads can
// share the work. The caller must have checked `branch` and `source`, and `output` must not overlap
// an input.
void ma_suppress_tokens(const MASuppressInputs& inputs, std::span<float> output, std::size_t begin,
                        std::size_t end);

// Checks `branch` and `source` and computes all of `output` [F, T, C].
void ma_suppress(const MASuppressInputs& inputs, std::span<float> output);

}  // namespace intaglio::ops
