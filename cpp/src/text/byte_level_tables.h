// The tables of a byte-level BPE tokenizer (Qwen3, Mistral), which the exporter writes from
// tokenizer.json.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/added_token.h"
#include "text/bpe.h"
#include "text/split_pattern.h"

namespace intaglio {

struct ByteLevelTables {
  bool nfc = false;
  SplitPattern pattern{{}, {}};
  std::array<std::int64_t, 256> bytes{};
  std::vector<Bpe::IdMerge> merges;  // in the order of their ranks
  // Words that are one token whatever the merges say, with ignore_merges.
  std::unordered_map<std::string, std::int64_t> words;
  std::vector<AddedToken> added_tokens;
  std::vector<std::int64_t> before, after;  // ids around the text
  std::int64_t pad = 0;
  bool pads_left = false;
  std::string removed;                          // what is taken out of the prompt; empty: nothing
  std::string template_before, template_after;  // text around the prompt
};

// Reads the tables from `json`, the content of the file `path`. The format is:
//   {"type": "byte_level_bpe", "nfc": bool,
//    "pattern": {"sets": [[[first, last], ...], ...],  # code points
//                "alternatives": [[{"set": index, "min": n, "max": n or null} or
//                                  {"not_before": index}, ...], ...]},
//    "bytes": [id of each byte], "merges": [left, right, merged, left, ...],
//    "words": {token in GPT-2's characters for bytes: id},  # only with ignore_merges
//    "added_tokens": [{"content", "id", "normalized": bool, "lstrip": bool, "rstrip": bool}],
//    "before": [id], "after": [id], "template": [text before, text after], "max_length",
//    "pad_token_id" or, if padding is on the left, "left_pad_token_id",
//    "removed": text}  # only where something is taken out of the prompt
// Throws InputError naming `path` for any other content.
ByteLevelTables read_byte_level_tables(const std::filesystem::path& path, const std::string& json);

}  // namespace intaglio
