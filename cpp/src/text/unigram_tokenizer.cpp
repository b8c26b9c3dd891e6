#include "text/unigram_tokenizer.h"

#include <algorithm>
#include <utility>

#include "intaglio/error.h"
#include "text/padding.h"
#include "text/unicode.h"

namespace intaglio {
namespace {

constexpr std::string_view kMetaspace = "\u2581";

std::size_t leading_space(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size() && is_space(first_character(text.substr(at))))
    at += utf8_length(text[at]);
  return at;
}

std::size_t trailing_space(std::string_view text) {
  std::size_t end = text.size();
  while (end > 0 && is_space(last_character(text.substr(0, end)))) {
    do --end;
    while (utf8_length(text[end]) == 0);
  }
  return text.size() - end;
}

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
      raw_added_(added_tokens(false)),
      normalized_added_(added_tokens(true)) {
  tables_.pieces = {};
  tables_.scores = {};
}

Trie UnigramTokenizer::added_tokens(bool normalized) const {
  std::vector<std::pair<std::string, std::uint32_t>> entries;
  for (std::uint32_t index = 0; index < tables_.added_tokens.size(); ++index) {
    const AddedToken& token = tables_.added_tokens[index];
    if (token.normalized != normalized) continue;
    entries.emplace_back(normalized ? normalize(token.content) : token.content, index);
  }
  return Trie(std::move(entries));
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
  split_at_added_tokens(text, raw_added_, buffer, [&](std::string_view part) {
    const std::string normalized = normalize(part);
    split_at_added_tokens(normalized, normalized_added_, buffer,
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

// Splits `text` at added tokens and passes the parts between them to on_text. Of overlapping tokens
// the leftmost counts, and of those that start together the longest.
template <typename OnText>
void UnigramTokenizer::split_at_added_tokens(std::string_view text, const Trie& added,
                                             IdBuffer& buffer, const OnText& on_text) const {
  std::size_t begin = 0;  // of the text that has not been passed on yet
  for (std::size_t at = 0; at < text.size() && !buffer.full();) {
    std::size_t end = 0;
    const AddedToken* token = nullptr;
    added.for_each_prefix(text.substr(at), [&](std::size_t length, std::uint32_t index) {
      end = at + length;
      token = &tables_.added_tokens[index];
    });
    if (token == nullptr) {
      ++at;
      continue;
    }
    if (at > begin) {
      std::string_view before = text.substr(begin, at - begin);
      if (token->lstrip) before.remove_suffix(trailing_space(before));
      if (!before.empty()) on_text(before);
    }
    buffer.ids.push_back(token->id);
    at = end;
    begin = token->rstrip ? end + leading_space(text.substr(end)) : end;
  }
  if (text.size() > begin && !buffer.full()) on_text(text.substr(begin));
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
