// The unigram language model (arXiv 1804.10959), which splits a word into its most likely pieces.
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

  // Appends the ids of `word`, which must be valid UTF-8, as the `tokenizers` library does. A run
  // of characters that no piece covers becomes one unknown token, or the tokens of its bytes. Takes
  // O(n * length of the longest piece).
  void encode(std::string_view word, std::vector<std::int64_t>& ids) const;

 private:
  // The best path to one position of a word.
  struct PathEnd {
    double score = 0;
    std::size_t begin = kUnreached;  // where the last piece of the path begins
    std::uint32_t id = 0;
  };
  static constexpr std::size_t kUnreached = SIZE_MAX;

  std::vector<PathEnd> best_paths(std::string_view word) const;
  void append_piece(std::string_view piece, std::vector<std::int64_t>& ids) const;

  Trie trie_;
  std::vector<double> scores_;
  double unknown_score_;
  std::uint32_t unknown_id_;
  bool byte_fallback_;
  std::array<std::uint32_t, 256> byte_ids_;  // of "<0x00>" to "<0xFF>"; Trie::kNone if absent
};

}  // namespace intaglio
