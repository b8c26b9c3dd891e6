// The tables of a Unigram tokenizer (T5), which the exporter writes from tokenizer.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/added_token.h"
#include "text/charsmap.h"

namespace intaglio {

// Removes white space from the ends of the text.
struct Strip {
  bool left = false, right = false;
};

// Replaces every run of two or more spaces by `content`.
struct ReplaceSpaces {
  std::string content;
};

using NormalizerStep = std::variant<Charsmap, Strip, ReplaceSpaces>;

struct UnigramTables {
  std::vector<std::string> pieces;  // the index of a piece is its id
  std::vector<double> scores;
  std::uint32_t unk = 0;
  bool byte_fallback = false;
  bool lowercase_strip = false;
  std::vector<NormalizerStep> normalizers;
  bool whitespace_split = false;
  std::vector<AddedToken> added_tokens;
  std::int64_t eos = 0, pad = 0;
};

// Reads the tables from `json`, the content of the file `path`. The format is:
//   {"type": "unigram", "pieces": [text, ...], "scores": [number, ...], "unk_token_id",
//    "byte_fallback": bool, "lowercase_strip": bool,  # apply Python's lower().strip() first
//    "normalizers": [{"type": "precompiled", "charsmap": base64},
//                    {"type": "strip", "left": bool, "right": bool},
//                    {"type": "replace_spaces", "content": text}],
//    "whitespace_split": bool,  # split at white space before splitting at "▁"
//    "added_tokens": [{"content", "id", "normalized": bool, "lstrip": bool, "rstrip": bool}],
//    "eos_token_id", "pad_token_id", "max_length"}
// Throws InputError naming `path` for any other content.
UnigramTables read_unigram_tables(const std::filesystem::path& path, const std::string& json);

}  // namespace intaglio
