// The character map that sentencepiece compiles from its normalization rules.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace intaglio {

// Holds a double-array trie (Darts) over UTF-8 bytes. Its values are offsets into one string that
// holds all replacements.
class Charsmap {
 public:
  // `blob` is a model's precompiled_charsmap: the size of the trie in bytes, the trie, and the
  // replacements, each of which ends with a zero byte. Throws std::invalid_argument, whose message
  // completes a sentence that begins with the tokenizer's name.
  explicit Charsmap(std::string_view blob);

  // Normalizes `text`, which must be valid UTF-8, as the Precompiled normalizer of the `tokenizers`
  // library does.
  std::string normalize(std::string_view text) const;

 private:
  std::optional<std::string_view> replacement(std::string_view text) const;

  std::vector<std::uint32_t> trie_;
  std::string replacements_;
};

}  // namespace intaglio
