// 8-bit RGB pictures and PNG files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "intaglio/tensor.h"

namespace intaglio {

struct Image {
  int width = 0;
  int height = 0;
  std::vector<std::uint8_t> pixels;  // height x width x 3, row-major
  bool transparent = false;          // whether its file had transparent pixels
};

using TextEntries = std::vector<std::pair<std::string, std::string>>;

// Converts [N, 3, H, W] float32 in [-1, 1] to N images. It rounds as diffusers' VaeImageProcessor
// does.
std::vector<Image> to_images(const Tensor& tensor);
// Converts an image to [1, 3, H, W] float32 in [-1, 1].
Tensor from_image(const Image& image);

// Writes the image under a temporary name, then renames the file. `text` becomes its text chunks
// (iTXt, UTF-8).
void write_png(const std::filesystem::path& path, const Image& image, const TextEntries& text = {});
// Reads any PNG as 8-bit RGB, turned as the orientation in its EXIF says. Transparent parts are
// drawn over black, 16 bits are scaled to 8, and a gamma is ignored, as in Pillow. Throws
// InputError naming the file.
Image read_png(const std::filesystem::path& path);
// Reads a PNG from the content of a file, which errors call `name`.
Image decode_png(std::string_view content, const std::string& name);

}  // namespace intaglio
