// Resampling of pictures.
#pragma once

#include "intaglio/image.h"

namespace intaglio {

// Returns the picture in another size, by Lanczos' filter with three lobes: along the rows
// and along the columns, in the order of Pillow 13 and each rounded to 8 bits as there.
Image resize(const Image& image, int width, int height);

// Returns the middle of the picture, which must not be smaller.
Image crop_middle(const Image& image, int width, int height);

}  // namespace intaglio
