// The pattern that splits a text into words, as byte-level BPE tokenizers need it: a regular
// expression without groups, whose sets of characters the exporter wrote out.
#pragma once

#include <array>
#include <cstddef>
#include <limits>
#include <string_view>
#include <vector>

#include "text/unicode.h"

namespace intaglio {

class CharacterSet {
 public:
  // `ranges` must be sorted.
  explicit CharacterSet(std::vector<CharRange> ranges);

  bool contains(char32_t c) const;

 private:
  std::vector<CharRange> ranges_;
  std::array<bool, 128> ascii_{};
};

class SplitPattern {
 public:
  static constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();

  // Takes from `least` to `most` characters of the set, as many as the rest of the word allows. If
  // `not_before`, takes none, but fails if the next character is in the set.
  struct Step {
    std::size_t set = 0;  // index
    std::size_t least = 1, most = 1;
    bool not_before = false;
  };
  using Steps = std::vector<Step>;

  // Each alternative must match at least one character.
  SplitPattern(std::vector<CharacterSet> sets, std::vector<Steps> alternatives);

  // Calls on_word for each match from left to right, and for each text between two matches. Of
  // several alternatives that match, the first counts.
  template <typename OnWord>
  void split(std::u32string_view text, const OnWord& on_word) const {
    std::size_t begin = 0;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t length = match(text.substr(at));
      if (length == 0) {
        ++at;
        continue;
      }
      if (at > begin) on_word(text.substr(begin, at - begin));
      on_word(text.substr(at, length));
      begin = at += length;
    }
    if (text.size() > begin) on_word(text.substr(begin));
  }

 private:
  // Returns the number of characters at the beginning of `text` that match, or 0.
  std::size_t match(std::u32string_view text) const;
  bool match(const Steps& steps, std::size_t step, std::u32string_view text, std::size_t at,
             std::size_t& end) const;

  std::vector<CharacterSet> sets_;
  std::vector<Steps> alternatives_;
};

}  // namespace intaglio
