#include "text/charsmap.h"

#include <stdexcept>

#include "text/unicode.h"

namespace intaglio {
namespace {

std::uint32_t little_endian(std::string_view bytes) {
  std::uint32_t value = 0;
  for (std::size_t i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

// These read the fields of one unit of the double array, in the bit layout of Darts-clone.
bool has_leaf(std::uint32_t unit) { return (unit >> 8 & 1) != 0; }
std::uint32_t value_of(std::uint32_t unit) { return unit & 0x7FFFFFFF; }
std::uint32_t label_of(std::uint32_t unit) { return unit & 0x800000FF; }
std::uint32_t offset_of(std::uint32_t unit) { return unit >> 10 << ((unit & 0x200) >> 6); }

// A grapheme shorter than this many bytes is looked up as a whole before its characters are.
constexpr std::size_t kWholeGraphemeLimit = 6;

}  // namespace

Charsmap::Charsmap(std::string_view blob) {
  const std::size_t size = blob.size() < 4 ? 0 : little_endian(blob);
  if (size < 4 || size % 4 != 0 || size > blob.size() - 4) {
    throw std::invalid_argument("has a charsmap that is cut off or is not a character map");
  }
  trie_.resize(size / 4);
  for (std::size_t i = 0; i < trie_.size(); ++i) trie_[i] = little_endian(blob.substr(4 + i * 4));
  replacements_ = blob.substr(4 + size);
  if (invalid_utf8(replacements_)) {
    throw std::invalid_argument("has a charsmap whose replacements are not valid UTF-8");
  }
}

// Returns the replacement of the shortest sequence that `text` starts with. sentencepiece takes the
// longest one, but the `tokenizers` library takes the shortest, and we follow the library. A
// damaged map with values out of range replaces nothing.
std::optional<std::string_view> Charsmap::replacement(std::string_view text) const {
  std::uint32_t node = offset_of(trie_[0]);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte == 0) break;
    node ^= byte;
    if (node >= trie_.size() || label_of(trie_[node]) != byte) break;
    const bool leaf = has_leaf(trie_[node]);
    node ^= offset_of(trie_[node]);
    if (!leaf) continue;
    if (node >= trie_.size()) break;
    const std::uint32_t begin = value_of(trie_[node]);
    if (begin > replacements_.size() || utf8_length(replacements_[begin]) == 0) break;
    return std::string_view(replacements_.c_str() + begin);
  }
  return std::nullopt;
}

std::string Charsmap::normalize(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    std::string_view grapheme = text.substr(0, grapheme_length(text));
    text.remove_prefix(grapheme.size());
    if (grapheme.size() < kWholeGraphemeLimit) {
      if (const auto found = replacement(grapheme)) {
        out += *found;
        continue;
      }
    }
    while (!grapheme.empty()) {
      const auto character = grapheme.substr(0, utf8_length(grapheme.front()));
      grapheme.remove_prefix(character.size());
      out += replacement(character).value_or(character);
    }
  }
  return out;
}

}  // namespace intaglio
