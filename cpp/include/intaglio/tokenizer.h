// Turns text into token ids, equal to those of transformers' fast tokenizers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace intaglio {

struct Tokens {
  std::vector<std::int64_t> ids;  // padded to the requested length
  int begin = 0;                  // ids of padding on the left, if the tokenizer pads there
  int used = 0;                   // ids that are not padding, special tokens included
  bool truncated = false;         // whether the end of the text was cut off
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Returns the ids of `text` (UTF-8) with the family's special tokens, truncated and padded to
  // `length`, as
  // tokenizer(text, padding="max_length", max_length=length, truncation=True).input_ids.
  // Throws InputError for broken UTF-8.
  virtual Tokens encode(std::string_view text, int length) const = 0;
};

// Reads the tables that export wrote from tokenizer.json. Throws InputError naming the file.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& tables);

}  // namespace intaglio
