// Byte-level byte-pair encoding of one word.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace intaglio {

struct ClipTables;

// Merges pairs of symbols, best rank first and leftmost first among equals, as in arXiv 1508.07909.
class Bpe {
 public:
  // Throws std::invalid_argument with the end of a sentence when a merge is not in the vocabulary.
  explicit Bpe(const ClipTables& tables);

  // Appends the ids of `word` (any bytes); O(n log n) in its length.
  void encode(std::string_view word, std::vector<std::int64_t>& ids) const;

 private:
  struct Merge {
    std::uint32_t rank;
    std::uint32_t id;
  };
  struct Symbol {
    std::uint32_t id;
    int previous, next;  // -1: none
    bool gone;
  };
  struct Candidate {
    std::uint32_t rank;
    int left;
    std::uint32_t id;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  struct PairHash {
    std::size_t operator()(std::uint64_t pair) const {
      return static_cast<std::size_t>((pair ^ (pair >> 29)) * 0x9E3779B97F4A7C15ULL);
    }
  };

  const Merge* find(const Symbol& left, const Symbol& right) const;
  void merge(std::vector<Symbol>& symbols) const;

  static constexpr std::int64_t kNone = -1;
  std::array<std::int64_t, 256> inner_;  // id of a byte inside a word
  std::array<std::int64_t, 256> final_;  // id of a byte that ends it
  std::unordered_map<std::uint64_t, Merge, PairHash> merges_;
};

}  // namespace intaglio
