// The tables of a Unigram tokenizer (T5), as export writes them from tokenizer.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/charsmap.h"

namespace intaglio {

// A token that is found in the text before it is cut into words.
struct UnigramAddedToken {
  std::string content;
  std::int64_t id = 0;
  bool normalized = false;              // found in the normalized text instead of the raw one
  bool lstrip = false, rstrip = false;  // takes the white space before and after it along
};

// Takes white space off the ends of the text.
struct Strip {
  bool left = false, right = false;
};

// Puts `content` for every run of two or more spaces.
struct ReplaceSpaces {
  std::string content;
};

using NormalizerStep = std::variant<Charsmap, Strip, ReplaceSpaces>;

struct UnigramTables {
  std::vector<std::string> pieces;  // a piece's id is its place
  std::vector<double> scores;
  std::uint32_t unk = 0;
  bool byte_fallback = false;
  bool lowercase_strip = false;
  std::vector<NormalizerStep> normalizers;
  bool whitespace_split = false;
  std::vector<UnigramAddedToken> added_tokens;
  std::int64_t eos = 0, pad = 0;
};

// `json` is the content of `path`, which errors name. The format:
//   {"type": "unigram", "pieces": [text, ...], "scores": [number, ...], "unk_token_id",
//    "byte_fallback": bool, "lowercase_strip": bool,  # Python's lower().strip() before all else
//    "normalizers": [{"type": "precompiled", "charsmap": base64},
//                    {"type": "strip", "left": bool, "right": bool},
//                    {"type": "replace_spaces", "content": text}],
//    "whitespace_split": bool,  # words end at white space, before they also do at "▁"
//    "added_tokens": [{"content", "id", "normalized": bool, "lstrip": bool, "rstrip": bool}],
//    "eos_token_id", "pad_token_id", "max_length"}
// Throws InputError for anything else.
UnigramTables read_unigram_tables(const std::filesystem::path& path, const std::string& json);

}  // namespace intaglio
