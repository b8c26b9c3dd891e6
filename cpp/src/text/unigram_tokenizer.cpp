#include "text/unigram_tokenizer.h"

#include <algorithm>
#include <utility>

#include "intaglio/error.h"
#include "text/padding.h"
#include "text/unicode.h"

namespace intaglio {
namespace {

constexpr std::string_view kMetaspace = "\u2581";

std::string normalized(const Charsmap& step, std::string_view text) { return step.normalize(text); }

std::string normalized(const Strip& step, std::string_view text) {
  if (step.left) text.remove_prefix(leading_space(text));
  if (step.right) text.remove_suffix(trailing_space(text));
  return std::string(text);
}

std::string normalized(const ReplaceSpaces& step, std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t spaces = std::min(text.find_first_not_of(' '), text.size());
    out += spaces > 1 ? std::string_view(step.content) : text.substr(0, spaces);
    text.remove_prefix(spaces);
    const std::size_t others = std::min(text.find(' '), text.size());
    out += text.substr(0, others);
    text.remove_prefix(others);
  }
  return out;
}

}  // namespace

UnigramTokenizer::UnigramTokenizer(UnigramTables tables)
    : tables_(std::move(tables)),
      model_(tables_),
      raw_added_(tables_.added_tokens, false, {}),
      normalized_added_(tables_.added_tokens, true,
                        [this](std::string_view text) { return normalize(text); }) {
  tables_.pieces = {};
  tables_.scores = {};
}

Tokens UnigramTokenizer::encode(std::string_view text, int length) const {
  if (length < 1) {
    throw UsageError("a prompt length of " + std::to_string(length) +
                     " leaves no room for the end token: give 1 or more");
  }
  check_utf8(text);
  const std::string lower = tables_.lowercase_strip ? python_lower_strip(text) : std::string();
  if (tables_.lowercase_strip) text = lower;
  IdBuffer buffer{.ids = {}, .limit = static_cast<std::size_t>(length) - 1};
  raw_added_.split(text, buffer, [&](std::string_view part) {
    normalized_added_.split(normalize(part), buffer,
                            [&](std::string_view words) { encode_words(words, buffer); });
  });
  return end_and_pad(std::move(buffer.ids), tables_.eos, tables_.pad, length);
}

std::string UnigramTokenizer::normalize(std::string_view text) const {
  std::string out(text);
  for (const NormalizerStep& step : tables_.normalizers) {
    out = std::visit([&](const auto& known) { return normalized(known, out); }, step);
  }
  return out;
}

void UnigramTokenizer::encode_words(std::string_view text, IdBuffer& buffer) const {
  if (!tables_.whitespace_split) return encode_word(text, buffer);
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size() && !buffer.full();) {
    const bool space = is_space(first_character(text.substr(at)));
    if (space && at > begin) encode_word(text.substr(begin, at - begin), buffer);
    at += utf8_length(text[at]);
    if (space) begin = at;
  }
  if (text.size() > begin && !buffer.full()) encode_word(text.substr(begin), buffer);
}

// Replaces spaces and the beginning of the word by "▁" and encodes each part from one "▁" to the
// next by itself.
void UnigramTokenizer::encode_word(std::string_view word, IdBuffer& buffer) const {
  std::string part;
  if (!word.starts_with(' ') && !word.starts_with(kMetaspace)) part = kMetaspace;
  while (!word.empty() && !buffer.full()) {
    const bool space = word.starts_with(' ');
    if (space || word.starts_with(kMetaspace)) {
      if (!part.empty()) model_.encode(part, buffer.ids);
      part = kMetaspace;
      word.remove_prefix(space ? 1 : kMetaspace.size());
    } else {
      part += word.front();
      word.remove_prefix(1);
    }
  }
  if (!buffer.full()) model_.encode(part, buffer.ids);
}

}  // namespace intaglio
