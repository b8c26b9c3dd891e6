// The byte-level BPE tokenizer of language models (Qwen3, Mistral), equal to transformers' fast
// tokenizers. A prompt is put into the chat template first, if the tables have one.
#pragma once

#include <string_view>

#include "intaglio/tokenizer.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/byte_level_tables.h"

namespace intaglio {

class ByteLevelTokenizer final : public Tokenizer {
 public:
  explicit ByteLevelTokenizer(ByteLevelTables tables);

  Tokens encode(std::string_view text, int length) const override;

 private:
  std::string normalize(std::string_view text) const;
  void encode_words(std::string_view text, IdBuffer& buffer) const;

  ByteLevelTables tables_;  // without the merges, which bpe_ holds
  Bpe bpe_;
  AddedTokens raw_added_;         // tokens that are searched for before normalization
  AddedTokens normalized_added_;  // tokens that are searched for after it
};

}  // namespace intaglio
