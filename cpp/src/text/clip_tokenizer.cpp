#include "text/clip_tokenizer.h"

#include <algorithm>
#include <initializer_list>
#include <stdexcept>

#include "intaglio/error.h"
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

// Calls on_special(id) and on_text(part) in order; the leftmost special wins, then the longest.
template <typename Char, typename Specials, typename OnSpecial, typename OnText>
void split_at_specials(std::basic_string_view<Char> text, const Specials& specials,
                       const OnSpecial& on_special, const OnText& on_text) {
  std::size_t begin = 0;
  std::size_t at = 0;
  while (at < text.size()) {
    const typename Specials::value_type* best = nullptr;
    for (const auto& special : specials) {
      if (text.substr(at).starts_with(special.content) &&
          (best == nullptr || special.content.size() > best->content.size())) {
        best = &special;
      }
    }
    if (best == nullptr) {
      ++at;
      continue;
    }
    if (at > begin) on_text(text.substr(begin, at - begin));
    on_special(best->id);
    at += best->content.size();
    begin = at;
  }
  if (text.size() > begin) on_text(text.substr(begin));
}

// The length of the first of `words` that `text` starts with; 0 for none.
std::size_t starts_with_any(std::u32string_view text,
                            std::initializer_list<std::u32string_view> words) {
  for (const auto word : words) {
    if (text.starts_with(word)) return word.size();
  }
  return 0;
}

// The first word of `text`, which does not start with white space:
//   's|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+
std::size_t word_length(std::u32string_view text) {
  const auto contraction =
      starts_with_any(text, {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"});
  if (contraction > 0) return contraction;
  const CharClass first = classify(text.front());
  if (first == CharClass::number) return 1;
  std::size_t length = 1;
  while (length < text.size() && classify(text[length]) == first) ++length;
  return length;
}

// Calls on_word for each word. The pattern's first alternatives are the special tokens' texts, and
// a second, byte-level split then takes these apart, so that their last sign stays alone.
template <typename OnWord>
void split_words(std::u32string_view text, const OnWord& on_word) {
  while (!text.empty()) {
    if (text.front() == U' ') {
      text.remove_prefix(1);
      continue;
    }
    const auto special = starts_with_any(text, {U"<|startoftext|>", U"<|endoftext|>"});
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
      normalized_specials_.push_back({normalize(token.content), token.id});
    } else {
      raw_specials_.push_back({token.content, token.id});
    }
  }
}

Tokens ClipTokenizer::encode(std::string_view text, int length) const {
  if (length < 2) {
    throw UsageError("a prompt length of " + std::to_string(length) +
                     " leaves no room for the two special tokens: give 2 or more");
  }
  check_utf8(text);
  const auto size = static_cast<std::size_t>(length);
  Tokens tokens{{bos_}, 0, false};
  encode_raw(text, tokens.ids);
  tokens.truncated = tokens.ids.size() > size - 1;
  tokens.ids.resize(std::min(tokens.ids.size(), size - 1));
  tokens.ids.push_back(eos_);
  tokens.used = static_cast<int>(tokens.ids.size());
  tokens.ids.resize(size, pad_);
  return tokens;
}

void ClipTokenizer::encode_raw(std::string_view text, std::vector<std::int64_t>& ids) const {
  split_at_specials(
      text, raw_specials_, [&](std::int64_t id) { ids.push_back(id); },
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
  split_at_specials(
      text, normalized_specials_, [&](std::int64_t id) { ids.push_back(id); },
      [&](std::u32string_view part) { split_words(part, on_word); });
}

}  // namespace intaglio
