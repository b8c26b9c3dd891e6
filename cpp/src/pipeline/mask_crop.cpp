#include "pipeline/mask_crop.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "image/resize.h"
#include "pipeline/latent_mask.h"
#include "pipeline/problems.h"

namespace intaglio {

namespace {

std::size_t offset(const Image& image, int x, int y) {
  return 3 * (static_cast<std::size_t>(y) * static_cast<std::size_t>(image.width) +
              static_cast<std::size_t>(x));
}

Image blank(int width, int height) {
  Image image{width, height, {}};
  image.pixels.resize(offset(image, 0, height));
  return image;
}

// Returns what lies beyond an edge: Pillow's bicubic filter, at the edge itself, of the last two
// values.
std::uint8_t beyond(std::uint8_t last, std::uint8_t before) {
  return static_cast<std::uint8_t>(std::clamp((9 * last - before + 4) >> 3, 0, 255));
}

// Puts an image into the middle of another size, beyond whose edges it continues or is cut off.
Image centred(Image image, int width, int height) {
  if (image.width == width && image.height == height) return image;
  const int left = width / 2 - image.width / 2, top = height / 2 - image.height / 2;
  Image result = blank(width, height);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const int column = std::clamp(x - left, 0, image.width - 1);
      const int row = std::clamp(y - top, 0, image.height - 1);
      // The neighbour on the other side from where the image ends.
      const int next_column = std::clamp(2 * column - (x - left), column - 1, column + 1);
      const int next_row = std::clamp(2 * row - (y - top), row - 1, row + 1);
      const std::size_t last = offset(image, column, row);
      const std::size_t before = offset(image, std::clamp(next_column, 0, image.width - 1),
                                        std::clamp(next_row, 0, image.height - 1));
      for (std::size_t i = 0; i < 3; ++i)
        result.pixels[offset(result, x, y) + i] =
            beyond(image.pixels[last + i], image.pixels[before + i]);
    }
  }
  return result;
}

// Scales an image, which keeps its aspect ratio, into the middle of another size. It fits inside,
// or `covers` all.
Image fit(const Image& image, int width, int height, bool covers) {
  const std::int64_t w = image.width, h = image.height;
  const bool is_wider = w * height > h * width;
  const auto at_least_one = [](std::int64_t side) { return std::max(static_cast<int>(side), 1); };
  if (is_wider == covers) {
    return centred(resize(image, at_least_one(w * height / h), height), width, height);
  }
  return centred(resize(image, width, at_least_one(h * width / w)), width, height);
}

// Extends first and last by `more`, half of it on each side, and shifts both into 0 to end.
void extend(int& first, int& last, int more, int end) {
  first -= more / 2;
  last += more - more / 2;
  const int back = std::max(last - end, 0);
  first -= back;
  last -= back;
  if (first < 0) last -= std::exchange(first, 0);
  last = std::min(last, end);
}

std::string size_text(int width, int height) {
  return std::to_string(width) + "x" + std::to_string(height);
}

bool is_black(const Image& mask) {
  return std::ranges::all_of(mask.pixels, [](std::uint8_t value) { return value == 0; });
}

}  // namespace

MaskCrop::MaskCrop(Image picture, Image mask, int padding, int width, int height)
    : picture_(std::move(picture)),
      mask_(std::move(mask)),
      width_(width),
      height_(height),
      left_(mask_.width),
      top_(mask_.height) {
  for (int y = 0; y < mask_.height; ++y) {
    for (int x = 0; x < mask_.width; ++x) {
      if (mask_.pixels[offset(mask_, x, y)] == 0) continue;
      left_ = std::min(left_, x);
      right_ = std::max(right_, x + 1);
      top_ = std::min(top_, y);
      bottom_ = std::max(bottom_, y + 1);
    }
  }
  left_ = std::max(left_ - padding, 0);
  top_ = std::max(top_ - padding, 0);
  right_ = std::min(right_ + padding, mask_.width);
  bottom_ = std::min(bottom_ + padding, mask_.height);
  const int w = right_ - left_, h = bottom_ - top_;
  const double ratio = static_cast<double>(width) / height;
  if (static_cast<double>(w) / h > ratio) {
    extend(top_, bottom_, static_cast<int>(w / ratio - h), mask_.height);
  } else {
    extend(left_, right_, static_cast<int>(h * ratio - w), mask_.width);
  }
}

std::string MaskCrop::misfit() const {
  constexpr std::int64_t kMost = 8;  // times as long in one direction
  const int w = right_ - left_, h = bottom_ - top_;
  const std::int64_t wide = std::int64_t{w} * height_, tall = std::int64_t{h} * width_;
  if (wide <= kMost * tall && tall <= kMost * wide) return "";
  return "the part around --mask is " + size_text(w, h) + " pixels, too long for a drawing of " +
         size_text(width_, height_) + ": give another --width and --height";
}

Image MaskCrop::cut(const Image& picture) const {
  Image part = blank(right_ - left_, bottom_ - top_);
  for (int y = 0; y < part.height; ++y) {
    std::copy_n(
        picture.pixels.begin() + static_cast<std::ptrdiff_t>(offset(picture, left_, top_ + y)),
        3 * part.width, part.pixels.begin() + static_cast<std::ptrdiff_t>(offset(part, 0, y)));
  }
  return fit(part, width_, height_, false);
}

Image MaskCrop::put_back(const Image& drawing) const {
  const Image part = fit(drawing, right_ - left_, bottom_ - top_, true);
  Image result = picture_;
  for (int y = 0; y < part.height; ++y) {
    for (int i = 0; i < 3 * part.width; ++i) {
      const auto to = offset(result, left_, top_ + y) + static_cast<std::size_t>(i);
      const int drawn = part.pixels[offset(part, 0, y) + static_cast<std::size_t>(i)];
      const int amount = mask_.pixels[to], kept = result.pixels[to];
      const int sum = amount * drawn + (255 - amount) * kept;
      result.pixels[to] = static_cast<std::uint8_t>((sum + 127) / 255);
    }
  }
  return result;
}

std::optional<MaskCrop> crop_to_mask(const Bundle& bundle, GenerateOptions& options,
                                     std::vector<Problem>& problems) {
  if (!options.mask_padding) return std::nullopt;
  if (*options.mask_padding < 0) {
    problems.push_back({"mask_padding", "--mask-padding must be 0 pixels or more"});
    return std::nullopt;
  }
  if (!options.mask || !options.image) {
    problems.push_back({"mask_padding", "--mask-padding cuts --image around --mask: give both"});
    return std::nullopt;
  }
  const Image &image = *options.image, &mask = *options.mask;
  const int width = *options.width, height = *options.height;
  const double blur = options.mask_blur.value_or(0);
  if (mask.width != image.width || mask.height != image.height) return std::nullopt;
  if (!is_blur(blur) || !bundle.check_size(height, width).empty()) return std::nullopt;
  Image grey = blurred_mask(mask, blur);
  if (is_black(grey)) return std::nullopt;
  const int padding = std::min(*options.mask_padding, std::max(mask.width, mask.height));
  MaskCrop crop(image, std::move(grey), padding, width, height);
  if (const std::string misfit = crop.misfit(); !misfit.empty()) {
    problems.push_back({"mask_padding", misfit, ExitCode::bad_input});
    return std::nullopt;
  }
  // Channels change in the mask before its blur.
  const Image& tokens = options.ma_tokens ? *options.ma_tokens : mask;
  if (tokens.width != image.width || tokens.height != image.height) {
    problems.push_back(
        {"ma_tokens",
         "with --mask-padding the picture for --ma-tokens is cut as --image is, but it is " +
             size_text(tokens.width, tokens.height) + " pixels and --image is " +
             size_text(image.width, image.height) + ": make both of one size",
         ExitCode::bad_input});
    return std::nullopt;
  }
  options.ma_tokens = crop.cut(tokens);
  options.image = crop.cut(crop.picture());
  options.mask = crop.cut(crop.mask());
  options.mask_blur.reset();
  return crop;
}

std::string scale_to_drawing(int width, int height, int unit, GenerateOptions& options) {
  if (!options.image || options.mask_padding) return "";
  const int from_width = options.image->width, from_height = options.image->height;
  if (from_width == width && from_height == height) return "";
  if (options.mask) {
    const Image& mask = *options.mask;
    const double blur = options.mask_blur.value_or(0);
    if (mask.width != from_width || mask.height != from_height || !is_blur(blur)) return "";
    if (!options.ma_tokens) options.ma_tokens = resize(mask, width, height);
    options.mask = resize(blurred_mask(mask, blur), width, height);
    options.mask_blur.reset();
  }
  options.image = resize(*options.image, width, height);
  const double in_shape = static_cast<double>(height) * from_width / from_height;
  if (std::abs(in_shape - width) <= unit * std::max(1.0, in_shape / height)) return "";
  return "--image is " + size_text(from_width, from_height) + " pixels and was stretched to " +
         size_text(width, height) + ", another shape";
}

}  // namespace intaglio
