// Where the latents of a picture are drawn anew.
#pragma once

#include <cstdint>

#include "intaglio/image.h"
#include "intaglio/tensor.h"

namespace intaglio {

// Whether make_latent_mask() and blurred_mask() take this radius in pixels.
bool is_blur(double radius);
// Returns the mask's luma after a Gaussian blur of so many pixels, in all three channels.
Image blurred_mask(const Image& mask, double blur);

// Returns [1, channels, rows, columns] float32: 1 in the cells that are drawn, where the mask has a
// luma of 128 or more after a Gaussian blur of so many pixels, and 0 elsewhere. A cell takes the
// pixel at its upper left corner. This is what diffusers' inpainting pipelines do by
// VaeImageProcessor and torch's `nearest`.
Tensor make_latent_mask(const Image& mask, double blur, std::int64_t channels, std::int64_t rows,
                        std::int64_t columns);

}  // namespace intaglio
