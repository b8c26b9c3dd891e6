// The orientation that EXIF gives a picture: how its pixels are to be turned or mirrored to be seen
// as the photographer saw it.
#pragma once

#include <string_view>

#include "intaglio/image.h"

namespace intaglio {

// Returns the orientation, 1 to 8, in the eXIf chunk of a PNG file; 1, which changes nothing, where
// there is none or it cannot be read.
int png_orientation(std::string_view png);

// Returns the picture as it is to be seen.
Image upright(Image image, int orientation);

}  // namespace intaglio
