#include "text/clip_tokenizer.h"

#include <initializer_list>
#include <stdexcept>
#include <utility>

#include "intaglio/error.h"
#include "text/padding.h"
#include "text/unicode.h"

namespace intaglio {
namespace {

Bpe make_bpe(const std::filesystem::path& path, const ClipTables& tables) {
  try {
    return Bpe(tables);
  } catch (const std::invalid_argument& problem) {
    throw InputError("the tokenizer " + path.string() + " " + problem.what() +
                     ": export the bundle again");
  }
}

std::u32string normalize(std::string_view text) { return lowercase(collapse_spaces(nfc(text))); }

// Splits `text` at added tokens and calls on_token(id) and on_text(part) in the order of the text.
// Of overlapping tokens the leftmost counts, and of those that start together the longest.
template <typename Char, typename AddedTokens, typename OnToken, typename OnText>
void split_at_added_tokens(std::basic_string_view<Char> text, const AddedTokens& added,
                           const OnToken& on_token, const OnText& on_text) {
  std::size_t begin = 0;
  std::size_t at = 0;
  while (at < text.size()) {
    const typename AddedTokens::value_type* best = nullptr;
    for (const auto& token : added) {
      if (text.substr(at).starts_with(token.content) &&
          (best == nullptr || token.content.size() > best->content.size())) {
        best = &token;
      }
    }
    if (best == nullptr) {
      ++at;
      continue;
    }
    if (at > begin) on_text(text.substr(begin, at - begin));
    on_token(best->id);
    at += best->content.size();
    begin = at;
  }
  if (text.size() > begin) on_text(text.substr(begin));
}

// Returns the length of the first of `words` that `text` starts with, or 0.
std::size_t matched_length(std::u32string_view text,
                           std::initializer_list<std::u32string_view> words) {
  for (const auto word : words) {
    if (text.starts_with(word)) return word.size();
  }
  return 0;
}

// Returns the length of the first word of `text`, which must not start with white space. A word
// matches the regular expression
//   's|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+
std::size_t word_length(std::u32string_view text) {
  const auto contraction =
      matched_length(text, {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"});
  if (contraction > 0) return contraction;
  const CharClass first = classify(text.front());
  if (first == CharClass::number) return 1;
  std::size_t length = 1;
  while (length < text.size() && classify(text[length]) == first) ++length;
  return length;
}

// Calls on_word for each word. The pattern of the library starts with the texts of the two special
// tokens, and the byte-level split that follows cuts such a text into "<|", the name and "|>".
template <typename OnWord>
void split_words(std::u32string_view text, const OnWord& on_word) {
  while (!text.empty()) {
    if (text.front() == U' ') {
      text.remove_prefix(1);
      continue;
    }
    const auto special = matched_length(text, {U"<|startoftext|>", U"<|endoftext|>"});
    if (special > 0) {
      on_word(text.substr(0, 2));
      on_word(text.substr(2, special - 4));
      on_word(text.substr(special - 2, 2));
      text.remove_prefix(special);
      continue;
    }
    const std::size_t length = word_length(text);
    on_word(text.substr(0, length));
    text.remove_prefix(length);
  }
}

}  // namespace

ClipTokenizer::ClipTokenizer(const std::filesystem::path& path, const ClipTables& tables)
    : bpe_(make_bpe(path, tables)), bos_(*tables.bos), eos_(*tables.eos), pad_(*tables.pad) {
  for (const AddedToken& token : tables.added_tokens) {
    check_utf8(token.content);
    if (token.content.empty()) continue;
    if (token.normalized) {
      normalized_added_.push_back({normalize(token.content), token.id});
    } else {
      raw_added_.push_back({token.content, token.id});
    }
  }
}

Tokens ClipTokenizer::encode(std::string_view text, int length) const {
  if (length < 2) {
    throw UsageError("a prompt length of " + std::to_string(length) +
                     " leaves no room for the start token and the end token: give 2 or more");
  }
  check_utf8(text);
  std::vector<std::int64_t> ids{bos_};
  encode_raw(text, ids);
  return end_and_pad(std::move(ids), eos_, pad_, length);
}

void ClipTokenizer::encode_raw(std::string_view text, std::vector<std::int64_t>& ids) const {
  split_at_added_tokens(
      text, raw_added_, [&](std::int64_t id) { ids.push_back(id); },
      [&](std::string_view part) { encode_normalized(normalize(part), ids); });
}

void ClipTokenizer::encode_normalized(std::u32string_view text,
                                      std::vector<std::int64_t>& ids) const {
  std::string bytes;
  const auto on_word = [&](std::u32string_view word) {
    bytes.clear();
    for (const char32_t c : word) append_utf8(bytes, c);
    bpe_.encode(bytes, ids);
  };
  split_at_added_tokens(
      text, normalized_added_, [&](std::int64_t id) { ids.push_back(id); },
      [&](std::u32string_view part) { split_words(part, on_word); });
}

}  // namespace intaglio
