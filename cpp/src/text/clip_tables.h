// The tables of a CLIP tokenizer, which the exporter writes from tokenizer.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/added_token.h"

namespace intaglio {

struct ClipTables {
  std::unordered_map<std::string, std::int64_t> vocab;
  std::vector<std::string> merges;  // "left right", in the order of their ranks
  std::vector<AddedToken> added_tokens;
  std::string end_of_word_suffix;
  std::optional<std::int64_t> bos, eos, pad, unk;
};

// Reads the tables from `json`, the content of the file `path`. The format is:
//   {"type": "clip_bpe", "vocab": {token: id}, "merges": ["left right", ...],
//    "added_tokens": {content: id or {"id": id, "normalized": bool}}, "end_of_word_suffix": "</w>",
//    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id" (or null), "max_length"}
// Throws InputError naming `path` for any other content.
ClipTables read_clip_tables(const std::filesystem::path& path, const std::string& json);

}  // namespace intaglio
