// Where massive channels may be suppressed, by token.
#pragma once

#include <cstdint>
#include <optional>

#include "intaglio/image.h"
#include "intaglio/tensor.h"
#include "pipeline/request.h"

namespace intaglio {

// Returns the mean brightness of the picture's pixels under each token, 0 to 1, as [rows *
// columns]; without a picture, all ones. Throws InputError for a picture of less than a pixel per
// token.
Tensor make_token_mask(const std::optional<Image>& picture, std::int64_t rows,
                       std::int64_t columns);

// Returns the request's token mask for each latent value of an image: [1, ...] as its latents.
Tensor term_mask(const Request& request);

}  // namespace intaglio
