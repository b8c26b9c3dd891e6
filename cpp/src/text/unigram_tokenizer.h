// T5's tokenizer (arXiv 1910.10683) as transformers' fast T5Tokenizer runs it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "intaglio/tokenizer.h"
#include "text/trie.h"
#include "text/unigram.h"
#include "text/unigram_tables.h"

namespace intaglio {

class UnigramTokenizer final : public Tokenizer {
 public:
  explicit UnigramTokenizer(UnigramTables tables);

  Tokens encode(std::string_view text, int length) const override;

 private:
  // The ids of one text, collected until there are more than can be used.
  struct Sink {
    std::vector<std::int64_t> ids;
    std::size_t limit;
    bool full() const { return ids.size() > limit; }
  };

  Trie added_tokens(bool normalized) const;
  std::string normalize(std::string_view text) const;
  template <typename OnText>
  void split_at_added(std::string_view text, const Trie& added, Sink& sink,
                      const OnText& on_text) const;
  void encode_words(std::string_view text, Sink& sink) const;
  void encode_word(std::string_view word, Sink& sink) const;

  UnigramTables tables_;  // without its pieces
  Unigram model_;
  Trie raw_added_;         // places in tables_.added_tokens: those found in the raw text
  Trie normalized_added_;  // and those found in the normalized one
};

}  // namespace intaglio
