#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <vector>

#include "intaglio/error.h"

namespace intaglio {
namespace {

const utf8proc_uint8_t* bytes_of(std::string_view text) {
  return reinterpret_cast<const utf8proc_uint8_t*>(text.data());
}

// Marks that Unicode added after version 9. The `tokenizers` library normalizes with the tables of
// version 9, where these are plain characters that are neither reordered nor composed. U+11A7 is in
// the list for another reason: utf8proc wrongly composes it with the Hangul syllable before it.
constexpr CharRange kNewerThanUnicode9[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x11A7, 0x11A7},
    {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},
    {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E},
    {0x11839, 0x1183A}, {0x11930, 0x11930}, {0x1193D, 0x1193E}, {0x11943, 0x11943},
    {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99},
    {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42},
    {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE},
    {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
};

// Marks that Unicode added between version 15.0, which utf8proc 2.8 knows, and version 17.0, by
// which the `tokenizers` library finds graphemes.
constexpr CharRange kNewerThanUnicode15[] = {
    {0x897, 0x897},     {0x1ACF, 0x1ADD},   {0x1AE0, 0x1AEB},   {0x10D69, 0x10D6D},
    {0x10EFA, 0x10EFC}, {0x113B8, 0x113C0}, {0x113C2, 0x113C2}, {0x113C5, 0x113C5},
    {0x113C7, 0x113CA}, {0x113CC, 0x113D0}, {0x113D2, 0x113D2}, {0x113E1, 0x113E2},
    {0x11B60, 0x11B67}, {0x11F5A, 0x11F5A}, {0x1611E, 0x1612F}, {0x1E5EE, 0x1E5EF},
    {0x1E6E3, 0x1E6E3}, {0x1E6E6, 0x1E6E6}, {0x1E6EE, 0x1E6EF}, {0x1E6F5, 0x1E6F5},
};

void append_nfc(std::u32string& out, std::string_view text) {
  constexpr auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  const auto size = static_cast<utf8proc_ssize_t>(text.size());
  const auto needed = utf8proc_decompose(bytes_of(text), size, nullptr, 0, options);
  if (needed <= 0) return;
  std::vector<utf8proc_int32_t> buffer(static_cast<std::size_t>(needed));
  utf8proc_decompose(bytes_of(text), size, buffer.data(), needed, options);
  const auto composed = utf8proc_normalize_utf32(buffer.data(), needed, options);
  out.append(buffer.begin(), buffer.begin() + composed);
}

}  // namespace

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

CharClass classify(char32_t c) {
  if (is_space(c)) return CharClass::space;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return CharClass::letter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return CharClass::number;
    default:
      return CharClass::other;
  }
}

std::optional<std::size_t> invalid_utf8(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    utf8proc_int32_t c = 0;
    const auto length =
        utf8proc_iterate(bytes_of(text) + at, static_cast<utf8proc_ssize_t>(text.size() - at), &c);
    if (length <= 0) return at;
    at += static_cast<std::size_t>(length);
  }
  return std::nullopt;
}

void check_utf8(std::string_view text) {
  if (const auto at = invalid_utf8(text)) {
    throw InputError("the prompt is not valid UTF-8 at byte " + std::to_string(*at) +
                     ": encode it as UTF-8");
  }
}

std::u32string nfc(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  std::size_t begin = 0;
  std::size_t at = 0;
  while (at < text.size()) {
    utf8proc_int32_t c = 0;
    const auto length = static_cast<std::size_t>(
        utf8proc_iterate(bytes_of(text) + at, static_cast<utf8proc_ssize_t>(text.size() - at), &c));
    if (contains(kNewerThanUnicode9, static_cast<char32_t>(c))) {
      append_nfc(out, text.substr(begin, at - begin));
      out.push_back(static_cast<char32_t>(c));
      begin = at + length;
    }
    at += length;
  }
  append_nfc(out, text.substr(begin));
  return out;
}

std::u32string collapse_spaces(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  bool in_run = false;
  for (const char32_t c : text) {
    const bool space = is_space(c);
    if (!space) out.push_back(c);
    if (space && !in_run) out.push_back(U' ');
    in_run = space;
  }
  return out;
}

std::u32string lowercase(std::u32string_view text) {
  constexpr char32_t dotted_capital_i = 0x130;
  std::u32string out;
  out.reserve(text.size());
  for (const char32_t c : text) {
    if (c == dotted_capital_i) {
      out += U"i\u0307";
    } else {
      out.push_back(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
    }
  }
  return out;
}

std::u32string decode_utf8(std::string_view text) {
  std::u32string out;
  for (std::size_t at = 0; at < text.size(); at += utf8_length(text[at]))
    out.push_back(first_character(text.substr(at)));
  return out;
}

void append_utf8(std::string& out, char32_t c) {
  utf8proc_uint8_t encoded[4];
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), encoded);
  out.append(encoded, encoded + length);
}

std::size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  if (byte < 0x80) return 1;
  if (byte < 0xC0) return 0;
  return byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

char32_t first_character(std::string_view text) {
  utf8proc_int32_t c = 0;
  utf8proc_iterate(bytes_of(text), static_cast<utf8proc_ssize_t>(text.size()), &c);
  return static_cast<char32_t>(c);
}

char32_t last_character(std::string_view text) {
  std::size_t at = text.size() - 1;
  while (at > 0 && utf8_length(text[at]) == 0) --at;
  return first_character(text.substr(at));
}

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

bool contains(std::span<const CharRange> ranges, char32_t c) {
  const auto after = std::ranges::upper_bound(ranges, c, {}, &CharRange::first);
  return after != ranges.begin() && c <= std::prev(after)->last;
}

std::size_t grapheme_length(std::string_view text) {
  auto previous = static_cast<utf8proc_int32_t>(first_character(text));
  utf8proc_int32_t state = 0;
  std::size_t at = utf8_length(text.front());
  while (at < text.size()) {
    auto next = static_cast<utf8proc_int32_t>(first_character(text.substr(at)));
    if (contains(kNewerThanUnicode15, static_cast<char32_t>(next)))
      next = 0x301;  // a mark that every version has
    if (utf8proc_grapheme_break_stateful(previous, next, &state)) break;
    previous = next;
    at += utf8_length(text[at]);
  }
  return at;
}

}  // namespace intaglio
