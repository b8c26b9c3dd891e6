#include "ops/ma_suppress.h"

#include <cassert>
#include <stdexcept>
#include <string>

namespace intaglio::ops {

namespace {

// Computes one token. This file is compiled with -ffp-contract=off, so each operation is rounded
// once, as SPEC.md requires. The loop computes both results and selects one, because a loop without
// a branch can be vectorised.
void suppress_token(const float* __restrict x, const float* __restrict mask,
                    const float* __restrict target, float keep, float* __restrict y,
                    std::size_t channels) {
  const float strength = 1.0F - keep;
  for (std::size_t c = 0; c < channels; ++c) {
    const float a = mask[c] * strength;
    const float suppressed = (1.0F - a) * x[c] + a * target[c];
    y[c] = a == 0.0F ? x[c] : suppressed;
  }
}

}  // namespace

void check_branch(std::span<const std::int64_t> branch, std::size_t rows) {
  for (std::size_t f = 0; f < branch.size(); ++f) {
    if (branch[f] >= 0 && static_cast<std::uint64_t>(branch[f]) < rows) continue;
    throw std::out_of_range("branch[" + std::to_string(f) + "] is " + std::to_string(branch[f]) +
                            ", but hidden has " + std::to_string(rows) +
                            (rows == 1 ? " row" : " rows"));
  }
}

void check_source(std::span<const std::int64_t> source, std::size_t tokens) {
  const auto last = static_cast<std::int64_t>(tokens);
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] >= 0 && source[i] <= last) continue;
    throw std::out_of_range("source has the value " + std::to_string(source[i]) +
                            ", but hidden has " + std::to_string(tokens) + " tokens");
  }
}

void ma_suppress_tokens(const MASuppressInputs& inputs, std::span<float> output, std::size_t begin,
                        std::size_t end) {
  const std::size_t channels = inputs.mask.size();
  for (std::size_t i = begin; i < end; ++i) {
    const auto row = static_cast<std::size_t>(inputs.branch[i / inputs.tokens]);
    const std::size_t from = row * inputs.tokens + i % inputs.tokens;
    const std::int64_t source = inputs.source.empty() ? 0 : inputs.source[i];
    const float* target =
        source == 0 ? inputs.ref.data()
                    : inputs.hidden.data() + static_cast<std::size_t>(source - 1) * channels;
    suppress_token(inputs.hidden.data() + from * channels, inputs.mask.data(), target,
                   inputs.keep[i], output.data() + i * channels, channels);
  }
}

void ma_suppress(const MASuppressInputs& inputs, std::span<float> output) {
  assert(inputs.ref.size() == inputs.mask.size());
  assert(inputs.hidden.size() == inputs.rows * inputs.tokens * inputs.mask.size());
  assert(inputs.keep.size() == inputs.branch.size() * inputs.tokens);
  assert(output.size() == inputs.keep.size() * inputs.mask.size());
  assert(inputs.source.empty() || inputs.source.size() == inputs.keep.size());
  check_branch(inputs.branch, inputs.rows);
  check_source(inputs.source, inputs.rows * inputs.tokens);
  ma_suppress_tokens(inputs, output, 0, inputs.keep.size());
}

}  // namespace intaglio::ops
