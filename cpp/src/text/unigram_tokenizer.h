// T5's tokenizer (arXiv 1910.10683), equal to transformers' fast T5Tokenizer.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "intaglio/tokenizer.h"
#include "text/added_tokens.h"
#include "text/unigram.h"
#include "text/unigram_tables.h"

namespace intaglio {

class UnigramTokenizer final : public Tokenizer {
 public:
  explicit UnigramTokenizer(UnigramTables tables);

  Tokens encode(std::string_view text, int length) const override;

 private:
  std::string normalize(std::string_view text) const;
  void encode_words(std::string_view text, IdBuffer& buffer) const;
  void encode_word(std::string_view word, IdBuffer& buffer) const;

  UnigramTables tables_;  // without pieces and scores, which model_ holds
  Unigram model_;
  AddedTokens raw_added_;         // tokens that are searched for before normalization
  AddedTokens normalized_added_;  // tokens that are searched for after it
};

}  // namespace intaglio
