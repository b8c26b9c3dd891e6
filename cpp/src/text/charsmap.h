// The character map that sentencepiece compiles from its normalization rules.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace intaglio {

// A double-array trie (Darts) over UTF-8, whose values are places in a text of replacements.
class Charsmap {
 public:
  // `blob` is a model's precompiled_charsmap: the trie's size in bytes, the trie, replacements that
  // end with a zero byte. Throws std::invalid_argument with the end of a sentence.
  explicit Charsmap(std::string_view blob);

  // `text` (valid UTF-8) as the Precompiled normalizer of the `tokenizers` library leaves it.
  std::string normalize(std::string_view text) const;

 private:
  std::optional<std::string_view> replacement(std::string_view text) const;

  std::vector<std::uint32_t> trie_;
  std::string replacements_;
};

}  // namespace intaglio
