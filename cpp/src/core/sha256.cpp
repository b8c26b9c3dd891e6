#include "core/sha256.h"

#include <openssl/evp.h>
#include <unistd.h>

#include <array>
#include <cassert>
#include <cerrno>
#include <memory>
#include <vector>

namespace intaglio {

std::string sha256_of_file(const std::filesystem::path& path) {
  return sha256_of(open_to_read(path), path);
}

std::string sha256_of(const Descriptor& file, const std::filesystem::path& path) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        EVP_MD_CTX_free);
  [[maybe_unused]] int ok = EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr);
  assert(ok);
  std::vector<char> buffer(1U << 20U);
  for (off_t at = 0;;) {
    const ssize_t got = ::pread(file.number(), buffer.data(), buffer.size(), at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_file("read", path, errno);
    if (got == 0) break;
    EVP_DigestUpdate(context.get(), buffer.data(), static_cast<std::size_t>(got));
    at += got;
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int length = 0;
  EVP_DigestFinal_ex(context.get(), digest.data(), &length);
  std::string text;
  for (unsigned int i = 0; i < length; ++i) {
    text += "0123456789abcdef"[digest[i] >> 4U];
    text += "0123456789abcdef"[digest[i] & 15U];
  }
  return text;
}

}  // namespace intaglio
