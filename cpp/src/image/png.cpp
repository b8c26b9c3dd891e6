// Reads and writes PNG with libpng. libpng is C code, so the callbacks here let no exception escape
// into it and report errors by longjmp instead.
#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <memory>
#include <utility>

#include "image/orientation.h"
#include "intaglio/error.h"
#include "intaglio/file.h"
#include "intaglio/image.h"

namespace intaglio {

namespace {

void append_bytes(png_structp png, png_bytep data, png_size_t count) {
  // png_error leaves by longjmp, which would leak the exception if it were called inside the catch.
  bool out_of_memory = false;
  try {
    static_cast<std::string*>(png_get_io_ptr(png))->append(reinterpret_cast<char*>(data), count);
  } catch (const std::exception&) {
    out_of_memory = true;
  }
  if (out_of_memory) png_error(png, "out of memory");
}

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  *static_cast<std::string*>(png_get_error_ptr(png)) = message;
  png_longjmp(png, 1);
}

// Returns false when libpng reports an error. libpng jumps back into this function then, so it must
// have no variable with a destructor.
bool encode(png_structp png, png_infop info, const Image& image, png_text* texts, int text_count,
            png_bytep* rows) {
  if (setjmp(png_jmpbuf(png))) return false;
  png_set_IHDR(png, info, static_cast<png_uint_32>(image.width),
               static_cast<png_uint_32>(image.height), 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (text_count) png_set_text(png, info, texts, text_count);
  png_set_rows(png, info, rows);
  png_write_png(png, info, PNG_TRANSFORM_IDENTITY, nullptr);
  return true;
}

// Returns the file without its gAMA chunk, by which libpng would change the colours. Pillow, and so
// diffusers, leaves them as they are stored.
std::string without_gamma(std::string_view png) {
  constexpr std::size_t signature = 8, around = 12;  // bytes; length, type and checksum of a chunk
  std::string kept(png.substr(0, signature));
  for (std::size_t at = signature; at < png.size();) {
    std::size_t size = png.size() - at;
    if (size >= around) {
      const auto* length = reinterpret_cast<png_const_bytep>(png.data() + at);
      size = std::min<std::size_t>(size, around + png_get_uint_32(length));
    }
    if (png.substr(std::min(at + 4, png.size()), 4) != "gAMA") kept += png.substr(at, size);
    at += size;
  }
  return kept;
}

// Returns whether a pixel of the file, which was read before without an error, is not opaque.
bool has_transparent_pixels(const std::string& file) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  const std::unique_ptr<png_image, decltype(&png_image_free)> guard(&png, png_image_free);
  if (!png_image_begin_read_from_memory(&png, file.data(), file.size())) return false;
  if (!(png.format & PNG_FORMAT_FLAG_ALPHA)) return false;
  png.format = PNG_FORMAT_GA;
  std::vector<std::uint8_t> pixels(PNG_IMAGE_SIZE(png));
  if (!png_image_finish_read(&png, nullptr, pixels.data(), 0, nullptr)) return false;
  for (std::size_t i = 1; i < pixels.size(); i += 2)
    if (pixels[i] != 255) return true;
  return false;
}

}  // namespace

void write_png(const std::filesystem::path& path, const Image& image, const TextEntries& text) {
  for (const auto& [key, value] : text) {
    if ((key + value).find('\0') != std::string::npos)
      throw InputError("the text " + key + " of " + path.string() +
                       " holds a zero byte, which PNG cannot store: leave it out");
  }
  std::string content;
  std::string message;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &message, on_error, nullptr);
  png_infop info = png ? png_create_info_struct(png) : nullptr;
  const auto destroy = [&](void*) { png_destroy_write_struct(&png, &info); };
  const std::unique_ptr<void, decltype(destroy)> guard(&png, destroy);
  if (!info) throw OutOfMemoryError("there is not enough memory to write " + path.string());
  png_set_write_fn(png, &content, append_bytes, nullptr);

  std::vector<png_text> texts(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    texts[i].compression = PNG_ITXT_COMPRESSION_NONE;
    texts[i].key = const_cast<char*>(text[i].first.c_str());
    texts[i].text = const_cast<char*>(text[i].second.c_str());
    texts[i].itxt_length = text[i].second.size();
    texts[i].lang = const_cast<char*>("");
    texts[i].lang_key = const_cast<char*>("");
  }
  std::vector<png_bytep> rows(static_cast<std::size_t>(image.height));
  for (std::size_t y = 0; y < rows.size(); ++y) {
    rows[y] =
        const_cast<png_bytep>(image.pixels.data()) + y * static_cast<std::size_t>(image.width) * 3;
  }
  if (!encode(png, info, image, texts.data(), static_cast<int>(texts.size()), rows.data())) {
    throw InputError("cannot encode " + path.string() + ": " + message);
  }
  write_file(path, content);
}

Image read_png(const std::filesystem::path& path) {
  return decode_png(read_file(path), path.string());
}

Image decode_png(std::string_view content, const std::string& name) {
  const std::string file = without_gamma(content);
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  const std::unique_ptr<png_image, decltype(&png_image_free)> guard(&png, png_image_free);
  const auto refuse = [&] {
    const std::string why = png.message;
    throw InputError(name + " cannot be read as a PNG file (" + why + "): convert it to PNG");
  };
  if (!png_image_begin_read_from_memory(&png, file.data(), file.size())) refuse();
  png.format = PNG_FORMAT_RGB;
  // Without this flag libpng takes 16-bit samples that have no gamma chunk as linear light.
  png.flags |= PNG_IMAGE_FLAG_16BIT_sRGB;
  Image image{static_cast<int>(png.width), static_cast<int>(png.height), {}};
  image.pixels.resize(PNG_IMAGE_SIZE(png));
  const png_color black{0, 0, 0};  // the background of transparent pixels
  if (!png_image_finish_read(&png, &black, image.pixels.data(), 0, nullptr)) refuse();
  image.transparent = has_transparent_pixels(file);
  return upright(std::move(image), png_orientation(content));
}

}  // namespace intaglio
