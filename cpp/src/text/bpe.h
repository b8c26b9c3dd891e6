// Byte-level byte-pair encoding (BPE) of one word.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace intaglio {

struct ClipTables;

// Merges neighbouring symbols in the order of their ranks, as in arXiv 1508.07909. Among equal
// ranks the leftmost pair is merged first.
class Bpe {
 public:
  struct IdMerge {
    std::uint32_t left, right, merged;
  };

  // Returns GPT-2's mapping of bytes to printable characters: a byte that is a visible Latin-1
  // character maps to that character, and the other 68 bytes map to U+0100 and up.
  static std::array<std::string, 256> byte_alphabet();

  // Takes the ids of the 256 bytes, which are the same inside and at the end of a word, and the
  // merges in the order of their ranks.
  Bpe(const std::array<std::int64_t, 256>& bytes, const std::vector<IdMerge>& merges);

  // Throws std::invalid_argument when a merge is not in the vocabulary. Its message completes a
  // sentence that begins with the tokenizer's name.
  explicit Bpe(const ClipTables& tables);

  // Appends the ids of `word`, which may hold any bytes. Takes O(n log n) in the word's length.
  void encode(std::string_view word, std::vector<std::int64_t>& ids) const;

 private:
  struct Merge {
    std::uint32_t rank;
    std::uint32_t id;
  };
  struct Symbol {
    std::uint32_t id;
    int previous, next;  // indices of the neighbours, or -1
    bool merged;         // into the symbol on its left
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
  std::array<std::int64_t, 256> inner_;  // ids of bytes that do not end a word
  std::array<std::int64_t, 256> final_;  // ids of bytes that end a word
  std::unordered_map<std::uint64_t, Merge, PairHash> merges_;
};

}  // namespace intaglio
