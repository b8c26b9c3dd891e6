// Gaussian blur of one channel.
#pragma once

#include <cstdint>
#include <vector>

namespace intaglio {

// Blurs height x width values, row-major, by a Gaussian of this standard deviation in pixels. Three
// extended box filters in each direction stand for it (Gwosdek et al., 2011), rounded as Pillow's
// ImageFilter.GaussianBlur rounds them. What lies beyond an edge is as the edge.
void gaussian_blur(std::vector<std::uint8_t>& values, std::int64_t height, std::int64_t width,
                   double radius);

}  // namespace intaglio
