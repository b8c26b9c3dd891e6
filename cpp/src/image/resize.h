// Resampling of pictures.
#pragma once

#include "intaglio/image.h"

namespace intaglio {

// Returns the picture in another size, by Lanczos' filter with three lobes: first along the rows,
// then along the columns, each rounded to 8 bits as Pillow's Image.resize rounds.
Image resize(const Image& image, int width, int height);

// Returns the middle of the picture, which must not be smaller.
Image crop_middle(const Image& image, int width, int height);

}  // namespace intaglio
