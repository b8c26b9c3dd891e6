// CLIP's tokenizer (arXiv 2103.00020), equal to transformers' fast CLIPTokenizer.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "intaglio/tokenizer.h"
#include "text/bpe.h"
#include "text/clip_tables.h"

namespace intaglio {

class ClipTokenizer final : public Tokenizer {
 public:
  // Throws InputError naming `path`, the file of the tables, when they contradict each other.
  ClipTokenizer(const std::filesystem::path& path, const ClipTables& tables);

  Tokens encode(std::string_view text, int length) const override;

 private:
  template <typename Char>
  struct AddedTokenText {
    std::basic_string<Char> content;
    std::int64_t id;
  };

  void encode_raw(std::string_view text, std::vector<std::int64_t>& ids) const;
  void encode_normalized(std::u32string_view text, std::vector<std::int64_t>& ids) const;

  Bpe bpe_;
  std::vector<AddedTokenText<char>> raw_added_;             // searched for before normalization
  std::vector<AddedTokenText<char32_t>> normalized_added_;  // searched for after it
  std::int64_t bos_, eos_, pad_;
};

}  // namespace intaglio
