// Latents as sequences of patches, and the positions of the patches.
#pragma once

#include <cstdint>

#include "intaglio/tensor.h"

namespace intaglio {

// Packs [N, C, h, w] to [N, (h / p) * (w / p), C * p * p], as diffusers'
// FluxPipeline._pack_latents does.
Tensor pack(const Tensor& latents, std::int64_t patch);
// Does the inverse. `rows` and `columns` count patches.
Tensor unpack(const Tensor& packed, std::int64_t rows, std::int64_t columns, std::int64_t patch);

// Returns (0, row, column) of every token, [rows * columns, 3] float32.
Tensor token_positions(std::int64_t rows, std::int64_t columns);

}  // namespace intaglio
