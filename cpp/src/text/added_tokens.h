// Tokens that are searched for in the whole text before the text is split into words.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_token.h"
#include "text/trie.h"

namespace intaglio {

// The ids of one text. It is full when it holds more than `limit` ids, because the rest of the text
// can then only be cut.
struct IdBuffer {
  std::vector<std::int64_t> ids;
  std::size_t limit;
  bool full() const { return ids.size() > limit; }
};

class AddedTokens {
 public:
  using OnText = std::function<void(std::string_view)>;

  // Takes those of `tokens` that are searched for in the normalized text, or those in the raw one.
  // `normalize` is applied to the content of the former.
  AddedTokens(const std::vector<AddedToken>& tokens, bool normalized,
              const std::function<std::string(std::string_view)>& normalize);

  // Appends the ids of the tokens in `text` and passes the parts between them to `on_text`, which
  // appends to the same buffer. Of overlapping tokens the leftmost counts, and of those that start
  // together the longest.
  void split(std::string_view text, IdBuffer& buffer, const OnText& on_text) const;

 private:
  std::vector<AddedToken> tokens_;
  Trie trie_;
};

}  // namespace intaglio
