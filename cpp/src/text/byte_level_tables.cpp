#include "text/byte_level_tables.h"

#include <map>
#include <utility>

#include "text/table_fields.h"
#include "text/unicode.h"

namespace intaglio {
namespace {

std::uint64_t number(const Json& value, const char* what, std::uint64_t largest) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > largest)
    fail(std::string("has a number in ") + what + " that is none or too large");
  return value.get<std::uint64_t>();
}

std::vector<std::int64_t> read_ids(const Json& json, const char* key) {
  std::vector<std::int64_t> ids;
  for (const Json& id : read_list(json, key))
    ids.push_back(static_cast<std::int64_t>(number(id, key, INT32_MAX)));
  return ids;
}

CharacterSet read_set(const Json& json) {
  constexpr char32_t last_character = 0x10FFFF;
  std::vector<CharRange> ranges;
  if (!json.is_array()) fail("has a set that is not a list");
  for (const Json& range : json) {
    if (!range.is_array() || range.size() != 2) fail("has a set with a range that is not a pair");
    const auto first = static_cast<char32_t>(number(range[0], "sets", last_character));
    const auto last = static_cast<char32_t>(number(range[1], "sets", last_character));
    if (last < first || (!ranges.empty() && first <= ranges.back().last))
      fail("has a set whose ranges are not sorted");
    ranges.push_back({first, last});
  }
  return CharacterSet(std::move(ranges));
}

SplitPattern::Step read_step(const Json& json, std::size_t sets) {
  const bool not_before = json.is_object() && json.contains("not_before");
  SplitPattern::Step step{.not_before = not_before};
  const std::uint64_t largest = sets == 0 ? 0 : sets - 1;
  step.set = number(member(json, not_before ? "not_before" : "set"), "pattern", largest);
  if (sets == 0) fail("has a pattern without sets");
  if (not_before) return step;
  step.least = number(member(json, "min"), "pattern", INT32_MAX);
  const Json& most = member(json, "max");
  step.most = most.is_null() ? SplitPattern::kUnlimited : number(most, "pattern", INT32_MAX);
  return step;
}

SplitPattern read_pattern(const Json& json) {
  constexpr std::size_t most_steps = 16;  // a step may be tried for every length of the one before
  std::vector<CharacterSet> sets;
  for (const Json& set : read_list(json, "sets")) sets.push_back(read_set(set));
  std::vector<SplitPattern::Steps> alternatives;
  for (const Json& steps : read_list(json, "alternatives")) {
    if (!steps.is_array() || steps.size() > most_steps)
      fail("has an alternative that is not a list of up to 16 steps");
    alternatives.emplace_back();
    for (const Json& step : steps) alternatives.back().push_back(read_step(step, sets.size()));
  }
  return {std::move(sets), std::move(alternatives)};
}

// Returns the bytes that a token stands for.
std::string bytes_of(const std::string& token, const std::map<char32_t, char>& byte_of) {
  if (invalid_utf8(token)) fail("has a word that is not valid UTF-8");
  std::string bytes;
  for (const char32_t c : decode_utf8(token)) {
    const auto found = byte_of.find(c);
    if (found == byte_of.end()) fail("has the word \"" + token + "\", which is not made of bytes");
    bytes += found->second;
  }
  return bytes;
}

void read_words(const Json& json, ByteLevelTables& tables) {
  if (!json.contains("words")) return;
  const Json& words = member(json, "words");
  if (!words.is_object()) fail("has words that are not an object");
  std::map<char32_t, char> byte_of;
  const auto alphabet = Bpe::byte_alphabet();
  for (std::size_t byte = 0; byte < alphabet.size(); ++byte)
    byte_of[first_character(alphabet[byte])] = static_cast<char>(byte);
  tables.words.reserve(words.size());
  for (const auto& [token, id] : words.items())
    tables.words[bytes_of(token, byte_of)] =
        static_cast<std::int64_t>(number(id, "words", INT32_MAX));
}

ByteLevelTables read(const Json& json) {
  ByteLevelTables tables;
  tables.nfc = read_bool(json, "nfc");
  tables.pattern = read_pattern(member(json, "pattern"));
  const auto bytes = read_ids(json, "bytes");
  if (bytes.size() != tables.bytes.size()) fail("does not have an id for each of 256 bytes");
  std::ranges::copy(bytes, tables.bytes.begin());
  const auto merges = read_ids(json, "merges");
  if (merges.size() % 3 != 0) fail("has merges that are not triples");
  for (std::size_t i = 0; i < merges.size(); i += 3) {
    tables.merges.push_back({static_cast<std::uint32_t>(merges[i]),
                             static_cast<std::uint32_t>(merges[i + 1]),
                             static_cast<std::uint32_t>(merges[i + 2])});
  }
  read_words(json, tables);
  tables.added_tokens = read_added_tokens(json);
  tables.before = read_ids(json, "before");
  tables.after = read_ids(json, "after");
  tables.pads_left = json.contains("left_pad_token_id");
  tables.pad = read_id(json, tables.pads_left ? "left_pad_token_id" : "pad_token_id");
  if (json.contains("removed")) {
    if (!json["removed"].is_string()) fail("has a removed that is not a text");
    tables.removed = json["removed"].get<std::string>();
  }
  const Json& around = read_list(json, "template");
  if (around.size() != 2 || !around[0].is_string() || !around[1].is_string())
    fail("has a template that is not a pair of texts");
  tables.template_before = around[0].get<std::string>();
  tables.template_after = around[1].get<std::string>();
  return tables;
}

}  // namespace

ByteLevelTables read_byte_level_tables(const std::filesystem::path& path, const std::string& json) {
  return read_tables(path, json, read);
}

}  // namespace intaglio
