// Where the latents of a picture are drawn anew.
#pragma once

#include <cstdint>

#include "intaglio/image.h"
#include "intaglio/tensor.h"

namespace intaglio {

// Returns [1, channels, rows, columns] float32: 1 in the cells that are drawn, where the mask has a
// luma of 128 or more after a Gaussian blur of so many pixels, and 0 elsewhere. A cell takes the
// pixel at its upper left corner. This is what diffusers' inpainting pipelines do by
// VaeImageProcessor and torch's `nearest`.
Tensor make_latent_mask(const Image& mask, double blur, std::int64_t channels, std::int64_t rows,
                        std::int64_t columns);

}  // namespace intaglio
