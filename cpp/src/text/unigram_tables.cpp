#include "text/unigram_tables.h"

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>

#include "intaglio/error.h"

namespace intaglio {
namespace {

using Json = nlohmann::json;

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument(what); }

const Json& member(const Json& object, const char* key) {
  if (!object.is_object())
    fail(std::string("has a value in place of the object that holds ") + key);
  const auto found = object.find(key);
  if (found == object.end()) fail(std::string("lacks ") + key);
  return *found;
}

bool read_bool(const Json& object, const char* key) {
  const Json& value = member(object, key);
  if (!value.is_boolean()) fail(std::string("has a ") + key + " that is not a boolean");
  return value.get<bool>();
}

std::string read_text(const Json& object, const char* key) {
  const Json& value = member(object, key);
  if (!value.is_string()) fail(std::string("has a ") + key + " that is not a string");
  return value.get<std::string>();
}

const Json& read_list(const Json& object, const char* key) {
  const Json& value = member(object, key);
  if (!value.is_array()) fail(std::string("has a ") + key + " that is not a list");
  return value;
}

// A token id is the index of a row of the text encoder's embeddings.
std::int64_t read_id(const Json& object, const char* key) {
  const Json& value = member(object, key);
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > INT32_MAX) {
    fail(std::string("has a ") + key + " that is not a token id");
  }
  return value.get<std::int64_t>();
}

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
  for (const Json& token : read_list(json, "added_tokens")) {
    tables.added_tokens.push_back({.content = read_text(token, "content"),
                                   .id = read_id(token, "id"),
                                   .normalized = read_bool(token, "normalized"),
                                   .lstrip = read_bool(token, "lstrip"),
                                   .rstrip = read_bool(token, "rstrip")});
  }
  tables.eos = read_id(json, "eos_token_id");
  tables.pad = read_id(json, "pad_token_id");
  return tables;
}

}  // namespace

UnigramTables read_unigram_tables(const std::filesystem::path& path, const std::string& json) {
  const auto refuse = [&](const std::string& what) {
    throw InputError("the tokenizer " + path.string() + " " + what + ": export the bundle again");
  };
  UnigramTables tables;
  try {
    tables = read(Json::parse(json));
  } catch (const Json::parse_error& error) {
    refuse("is not valid JSON at byte " + std::to_string(error.byte));
  } catch (const Json::out_of_range&) {
    refuse("has a number that is too large");
  } catch (const std::invalid_argument& problem) {
    refuse(problem.what());
  }
  return tables;
}

}  // namespace intaglio
