#include "image/orientation.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace intaglio {

namespace {

constexpr int kUpright = 1;

// Returns a number of `bytes` bytes, or 0 where the data ends before it.
std::uint32_t number(std::string_view data, std::size_t at, std::size_t bytes, bool big_endian) {
  if (at > data.size() || data.size() - at < bytes) return 0;
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < bytes; ++i) {
    const std::size_t byte = big_endian ? i : bytes - 1 - i;
    value = value << 8U | static_cast<unsigned char>(data[at + byte]);
  }
  return value;
}

// Returns the content of the eXIf chunk, or nothing.
std::string_view exif_of(std::string_view png) {
  constexpr std::size_t signature = 8, around = 12;  // bytes; length, type and checksum of a chunk
  for (std::size_t at = signature; png.size() > at && png.size() - at >= around;) {
    const std::size_t length = number(png, at, 4, true);
    if (png.size() - at - around < length) return {};
    if (png.substr(at + 4, 4) == "eXIf") return png.substr(at + 8, length);
    at += length + around;
  }
  return {};
}

}  // namespace

int png_orientation(std::string_view png) {
  // A TIFF file: the byte order, the offset of the first directory, and its entries of 12 bytes,
  // each a tag, a type, a count and a value.
  const std::string_view exif = exif_of(png);
  const bool big_endian = exif.starts_with("MM");
  if (!big_endian && !exif.starts_with("II")) return kUpright;
  const std::size_t directory = number(exif, 4, 4, big_endian);
  const std::size_t entries = number(exif, directory, 2, big_endian);
  for (std::size_t i = 0; i < entries; ++i) {
    const std::size_t entry = directory + 2 + 12 * i;
    if (number(exif, entry, 2, big_endian) != 0x0112) continue;
    const std::uint32_t orientation = number(exif, entry + 8, 2, big_endian);
    return orientation >= 1 && orientation <= 8 ? static_cast<int>(orientation) : kUpright;
  }
  return kUpright;
}

Image upright(Image image, int orientation) {
  if (orientation == kUpright) return image;
  const bool transposed = orientation >= 5;
  const bool right_to_left = orientation == 2 || orientation == 3 || orientation >= 7;
  const bool upside_down =
      orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Image turned{image.width, image.height, {}, image.transparent};
  if (transposed) std::swap(turned.width, turned.height);
  turned.pixels.resize(image.pixels.size());
  auto target = turned.pixels.begin();
  for (int y = 0; y < turned.height; ++y) {
    for (int x = 0; x < turned.width; ++x) {
      int column = transposed ? y : x, row = transposed ? x : y;
      if (right_to_left) column = image.width - 1 - column;
      if (upside_down) row = image.height - 1 - row;
      const std::size_t pixel =
          static_cast<std::size_t>(row) * static_cast<std::size_t>(image.width) +
          static_cast<std::size_t>(column);
      target =
          std::copy_n(image.pixels.begin() + static_cast<std::ptrdiff_t>(3 * pixel), 3, target);
    }
  }
  return turned;
}

}  // namespace intaglio
