// T5's tokenizer (arXiv 1910.10683), equal to transformers' fast T5Tokenizer.
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
  // Collects the ids of one text. It is full when it holds more than `limit` ids, because the rest
  // of the text can then only be cut.
  struct IdBuffer {
    std::vector<std::int64_t> ids;
    std::size_t limit;
    bool full() const { return ids.size() > limit; }
  };

  Trie added_tokens(bool normalized) const;
  std::string normalize(std::string_view text) const;
  template <typename OnText>
  void split_at_added_tokens(std::string_view text, const Trie& added, IdBuffer& buffer,
                             const OnText& on_text) const;
  void encode_words(std::string_view text, IdBuffer& buffer) const;
  void encode_word(std::string_view word, IdBuffer& buffer) const;

  UnigramTables tables_;  // without pieces and scores, which model_ holds
  Unigram model_;
  // Both map texts to indices of tables_.added_tokens.
  Trie raw_added_;         // tokens that are searched for before normalization
  Trie normalized_added_;  // tokens that are searched for after it
};

}  // namespace intaglio
