#include "text/unigram_tables.h"

#include <cmath>
#include <cstdint>
#include <string_view>

#include "text/table_fields.h"

namespace intaglio {
namespace {

std::string base64_decoded(const std::string& text) {
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::string bytes;
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < text.size() - padding; ++i) {
    const std::size_t digit = digits.find(text[i]);
    if (text.size() % 4 != 0 || digit == std::string_view::npos) {
      fail("has a charsmap that is not base64");
    }
    bits = bits << 6U | static_cast<std::uint32_t>(digit);
    if (i % 4 != 0) bytes += static_cast<char>(bits >> (6U - 2U * (i % 4)));
  }
  return bytes;
}

NormalizerStep read_step(const Json& step) {
  const std::string type = read_text(step, "type");
  if (type == "precompiled") return Charsmap(base64_decoded(read_text(step, "charsmap")));
  if (type == "strip") return Strip{read_bool(step, "left"), read_bool(step, "right")};
  if (type == "replace_spaces") return ReplaceSpaces{read_text(step, "content")};
  fail("has the unknown normalizer \"" + type + "\"");
}

void read_pieces(const Json& json, UnigramTables& tables) {
  const Json& pieces = read_list(json, "pieces");
  const Json& scores = read_list(json, "scores");
  if (pieces.empty() || pieces.size() != scores.size() || pieces.size() > INT32_MAX) {
    fail("must have at least one piece and one score for every piece");
  }
  for (const Json& piece : pieces) {
    if (!piece.is_string()) fail("has a piece that is not a string");
    tables.pieces.push_back(piece.get<std::string>());
  }
  for (const Json& score : scores) {
    if (!score.is_number() || !std::isfinite(score.get<double>())) {
      fail("has a score that is not a finite number");
    }
    tables.scores.push_back(score.get<double>());
  }
  const std::int64_t unk = read_id(json, "unk_token_id");
  if (unk >= static_cast<std::int64_t>(pieces.size()))
    fail("has an unk_token_id that is not the index of a piece");
  tables.unk = static_cast<std::uint32_t>(unk);
}

UnigramTables read(const Json& json) {
  UnigramTables tables;
  read_pieces(json, tables);
  tables.byte_fallback = read_bool(json, "byte_fallback");
  tables.lowercase_strip = read_bool(json, "lowercase_strip");
  for (const Json& step : read_list(json, "normalizers")) {
    tables.normalizers.push_back(read_step(step));
  }
  tables.whitespace_split = read_bool(json, "whitespace_split");
  tables.added_tokens = read_added_tokens(json);
  tables.eos = read_id(json, "eos_token_id");
  tables.pad = read_id(json, "pad_token_id");
  return tables;
}

}  // namespace

UnigramTables read_unigram_tables(const std::filesystem::path& path, const std::string& json) {
  return read_tables(path, json, read);
}

}  // namespace intaglio
