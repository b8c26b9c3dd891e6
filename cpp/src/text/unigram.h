// The unigram language model (arXiv 1804.10959): a word's most likely pieces.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/trie.h"

namespace intaglio {

struct UnigramTables;

class Unigram {
 public:
  explicit Unigram(const UnigramTables& tables);

  // Appends the ids of `word` (valid UTF-8) as the `tokenizers` library finds them; what no piece
  // covers becomes one unknown token, or its bytes' tokens. O(n * longest piece).
  void encode(std::string_view word, std::vector<std::int64_t>& ids) const;

 private:
  struct Step {
    double score = 0;
    std::size_t begin = kUnreached;  // where the last piece of the best path begins
    std::uint32_t id = 0;
  };
  static constexpr std::size_t kUnreached = SIZE_MAX;

  std::vector<Step> best_path(std::string_view word) const;
  void append_piece(std::string_view piece, std::vector<std::int64_t>& ids) const;

  Trie trie_;
  std::vector<double> scores_;
  double unknown_score_;
  std::uint32_t unknown_;
  bool byte_fallback_;
  std::array<std::uint32_t, 256> bytes_;  // tokens "<0x00>" to "<0xFF>"; Trie::kNone: lacking
};

}  // namespace intaglio
