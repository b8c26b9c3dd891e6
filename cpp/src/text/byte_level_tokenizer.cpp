#include "text/byte_level_tokenizer.h"

#include <algorithm>
#include <utility>

#include "intaglio/error.h"
#include "text/unicode.h"

namespace intaglio {
namespace {

// Appends `text` without every `removed`, as Python's str.replace does.
void append_without(std::string& out, std::string_view text, std::string_view removed) {
  for (std::size_t at; !removed.empty() && (at = text.find(removed)) != text.npos;) {
    out += text.substr(0, at);
    text.remove_prefix(at + removed.size());
  }
  out += text;
}

}  // namespace

ByteLevelTokenizer::ByteLevelTokenizer(ByteLevelTables tables)
    : tables_(std::move(tables)),
      bpe_(tables_.bytes, tables_.merges),
      raw_added_(tables_.added_tokens, false, {}),
      normalized_added_(tables_.added_tokens, true,
                        [this](std::string_view text) { return normalize(text); }) {
  tables_.merges = {};
}

Tokens ByteLevelTokenizer::encode(std::string_view text, int length) const {
  const auto size = static_cast<std::size_t>(std::max(length, 0));
  const std::size_t around = tables_.before.size() + tables_.after.size();
  if (size < around + 1) {
    throw UsageError("a prompt length of " + std::to_string(length) +
                     " leaves no room for the prompt: give " + std::to_string(around + 1) +
                     " or more");
  }
  check_utf8(text);
  std::string whole = tables_.template_before;
  append_without(whole, text, tables_.removed);
  whole += tables_.template_after;
  IdBuffer buffer{.ids = {}, .limit = size - around};
  raw_added_.split(whole, buffer, [&](std::string_view part) {
    normalized_added_.split(normalize(part), buffer,
                            [&](std::string_view words) { encode_words(words, buffer); });
  });
  const bool truncated = buffer.full();
  buffer.ids.resize(std::min(buffer.ids.size(), buffer.limit));
  std::vector<std::int64_t> ids = tables_.before;
  ids.insert(ids.end(), buffer.ids.begin(), buffer.ids.end());
  ids.insert(ids.end(), tables_.after.begin(), tables_.after.end());
  const int used = static_cast<int>(ids.size());
  const int padding = static_cast<int>(size) - used;
  ids.insert(tables_.pads_left ? ids.begin() : ids.end(), padding, tables_.pad);
  return {.ids = std::move(ids),
          .begin = tables_.pads_left ? padding : 0,
          .used = used,
          .truncated = truncated};
}

std::string ByteLevelTokenizer::normalize(std::string_view text) const {
  if (!tables_.nfc) return std::string(text);
  std::string out;
  for (const char32_t c : nfc(text)) append_utf8(out, c);
  return out;
}

void ByteLevelTokenizer::encode_words(std::string_view text, IdBuffer& buffer) const {
  std::string word;
  tables_.pattern.split(decode_utf8(text), [&](std::u32string_view characters) {
    if (buffer.full()) return;
    word.clear();
    for (const char32_t c : characters) append_utf8(word, c);
    const auto whole = tables_.words.find(word);
    if (whole == tables_.words.end())
      bpe_.encode(word, buffer.ids);
    else
      buffer.ids.push_back(whole->second);
  });
}

}  // namespace intaglio
