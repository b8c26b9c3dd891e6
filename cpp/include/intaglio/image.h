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
};

using TextEntries = std::vector<std::pair<std::string, std::string>>;

// [N, 3, H, W] float32 in [-1, 1] to N images; rounds as diffusers' VaeImageProcessor does.
std::vector<Image> to_images(const Tensor& tensor);
// An image to [1, 3, H, W] float32 in [-1, 1].
Tensor from_image(const Image& image);

// `text` becomes the file's text chunks (iTXt, UTF-8). Written under a temporary name, then
// renamed.
void write_png(const std::filesystem::path& path, const Image& image, const TextEntries& text = {});
// Any PNG, as 8-bit RGB: transparent parts over black, 16 bits scaled. Throws InputError naming the
// file.
Image read_png(const std::filesystem::path& path);
// The same of a file's content, called `name` in the error.
Image decode_png(std::string_view content, const std::string& name);

}  // namespace intaglio
