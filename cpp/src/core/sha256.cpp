#include "core/sha256.h"

#include <rhash.h>

#include <array>
#include <cerrno>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "intaglio/error.h"
#include "platform/file.h"

namespace intaglio {

std::string sha256_of_file(const std::filesystem::path& path) {
  return sha256_of(open_to_read(path), path);
}

std::string sha256_of(const Descriptor& file, const std::filesystem::path& path) {
  [[maybe_unused]] static const bool initialised = (rhash_library_init(), true);
  const std::unique_ptr<std::remove_pointer_t<rhash>, decltype(&rhash_free)> context(
      rhash_init(RHASH_SHA256), rhash_free);
  if (!context) throw OutOfMemoryError("there is not enough memory to check " + path.string());
  std::vector<char> buffer(1U << 20U);
  for (std::int64_t at = 0;;) {
    const std::int64_t got = platform::read_at(file.number(), buffer.data(), buffer.size(), at);
    if (got < 0) fail_file("read", path, errno);
    if (got == 0) break;
    rhash_update(context.get(), buffer.data(), static_cast<std::size_t>(got));
    at += got;
  }
  std::array<unsigned char, 32> digest{};
  rhash_final(context.get(), digest.data());
  std::string text;
  for (const unsigned char byte : digest) {
    text += "0123456789abcdef"[byte >> 4U];
    text += "0123456789abcdef"[byte & 15U];
  }
  return text;
}

}  // namespace intaglio
