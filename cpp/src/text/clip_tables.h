// The tables of a CLIP tokenizer, as export writes them from tokenizer.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace intaglio {

// A token that is found in the text before anything else happens to it.
struct AddedToken {
  std::string content;
  std::int64_t id = 0;
  bool normalized = false;  // found in the normalized text instead of the raw one
};

struct ClipTables {
  std::unordered_map<std::string, std::int64_t> vocab;
  std::vector<std::string> merges;  // "left right", best first
  std::vector<AddedToken> added_tokens;
  std::string end_of_word_suffix;
  std::optional<std::int64_t> bos, eos, pad, unk;
};

// `json` is the content of `path`, which errors name. The format:
//   {"type": "clip_bpe", "vocab": {token: id}, "merges": ["left right", ...],
//    "added_tokens": {content: id or {"id": id, "normalized": bool}}, "end_of_word_suffix": "</w>",
//    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id" (or null), "max_length"}
// Throws InputError for anything else.
ClipTables read_clip_tables(const std::filesystem::path& path, const std::string& json);

}  // namespace intaglio
