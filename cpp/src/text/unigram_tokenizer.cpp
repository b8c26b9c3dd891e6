#include "text/unigram_tokenizer.h"

#include <algorithm>
#include <utility>

#include "intaglio/error.h"
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
  for (std::uint32_t place = 0; place < tables_.added_tokens.size(); ++place) {
    const UnigramAddedToken& token = tables_.added_tokens[place];
    if (token.normalized != normalized) continue;
    entries.emplace_back(normalized ? normalize(token.content) : token.content, place);
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
  const auto size = static_cast<std::size_t>(length);
  Sink sink{{}, size - 1};
  split_at_added(text, raw_added_, sink, [&](std::string_view part) {
    const std::string normalized = normalize(part);
    split_at_added(normalized, normalized_added_, sink,
                   [&](std::string_view words) { encode_words(words, sink); });
  });
  Tokens tokens{{}, 0, sink.full()};
  tokens.ids = std::move(sink.ids);
  tokens.ids.resize(std::min(tokens.ids.size(), size - 1));
  tokens.ids.push_back(tables_.eos);
  tokens.used = static_cast<int>(tokens.ids.size());
  tokens.ids.resize(size, tables_.pad);
  return tokens;
}

std::string UnigramTokenizer::normalize(std::string_view text) const {
  std::string out(text);
  for (const NormalizerStep& step : tables_.normalizers) {
    out = std::visit([&](const auto& known) { return normalized(known, out); }, step);
  }
  return out;
}

// The leftmost added token wins, then the longest; the rest goes to on_text part by part.
template <typename OnText>
void UnigramTokenizer::split_at_added(std::string_view text, const Trie& added, Sink& sink,
                                      const OnText& on_text) const {
  std::size_t begin = 0;  // of what is not yet handed on
  for (std::size_t at = 0; at < text.size() && !sink.full();) {
    std::size_t end = 0;
    const UnigramAddedToken* token = nullptr;
    added.prefixes(text.substr(at), [&](std::size_t length, std::uint32_t place) {
      end = at + length;
      token = &tables_.added_tokens[place];
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
    sink.ids.push_back(token->id);
    at = end;
    begin = token->rstrip ? end + leading_space(text.substr(end)) : end;
  }
  if (text.size() > begin && !sink.full()) on_text(text.substr(begin));
}

void UnigramTokenizer::encode_words(std::string_view text, Sink& sink) const {
  if (!tables_.whitespace_split) return encode_word(text, sink);
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size() && !sink.full();) {
    const bool space = is_space(first_character(text.substr(at)));
    if (space && at > begin) encode_word(text.substr(begin, at - begin), sink);
    at += utf8_length(text[at]);
    if (space) begin = at;
  }
  if (text.size() > begin && !sink.full()) encode_word(text.substr(begin), sink);
}

// Writes spaces and the word's beginning as "▁", and every part from one to the next is a word of
// its own to the model.
void UnigramTokenizer::encode_word(std::string_view word, Sink& sink) const {
  std::string part;
  if (!word.starts_with(' ') && !word.starts_with(kMetaspace)) part = kMetaspace;
  while (!word.empty() && !sink.full()) {
    const bool space = word.starts_with(' ');
    if (space || word.starts_with(kMetaspace)) {
      if (!part.empty()) model_.encode(part, sink.ids);
      part = kMetaspace;
      word.remove_prefix(space ? 1 : kMetaspace.size());
    } else {
      part += word.front();
      word.remove_prefix(1);
    }
  }
  if (!sink.full()) model_.encode(part, sink.ids);
}

}  // namespace intaglio
