// Python's str.lower and str.strip, which CPython implements in Objects/unicodeobject.c.
#include <utf8proc.h>

#include <algorithm>

#include "text/unicode.h"

namespace intaglio {
namespace {

// Characters that are cased by the properties Other_Uppercase and Other_Lowercase; other cased
// characters are recognised by their category. Characters that are case-ignorable as well are left
// out, because is_final skips them.
constexpr CharRange kOtherCased[] = {
    {0xAA, 0xAA},       {0xBA, 0xBA},       {0x2160, 0x217F},   {0x24B6, 0x24E9},
    {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189},
};

// Characters whose Word_Break property is MidLetter, MidNumLet or Single_Quote.
constexpr CharRange kMidWord[] = {
    {0x27, 0x27},     {0x2E, 0x2E},     {0x3A, 0x3A},     {0xB7, 0xB7},
    {0x387, 0x387},   {0x55F, 0x55F},   {0x5F4, 0x5F4},   {0x2018, 0x2019},
    {0x2024, 0x2024}, {0x2027, 0x2027}, {0xFE13, 0xFE13}, {0xFE52, 0xFE52},
    {0xFE55, 0xFE55}, {0xFF07, 0xFF07}, {0xFF0E, 0xFF0E}, {0xFF1A, 0xFF1A},
};

bool is_cased(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
      return true;
    default:
      return contains(kOtherCased, c);
  }
}

bool is_case_ignorable(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return contains(kMidWord, c);
  }
}

// Whether the sigma at `at` ends a word: skipping case-ignorable characters, a cased character
// comes before it and none comes after it.
bool is_final(std::u32string_view text, std::size_t at) {
  const auto is_relevant = [](char32_t c) { return !is_case_ignorable(c); };
  const auto before = text.substr(0, at);
  const auto previous = std::find_if(before.rbegin(), before.rend(), is_relevant);
  if (previous == before.rend() || !is_cased(*previous)) return false;
  const auto after = text.substr(at + 1);
  const auto next = std::ranges::find_if(after, is_relevant);
  return next == after.end() || !is_cased(*next);
}

bool is_python_space(char32_t c) { return is_space(c) || (c >= 0x1C && c <= 0x1F); }

}  // namespace

std::string python_lower_strip(std::string_view text) {
  constexpr char32_t capital_sigma = 0x3A3;
  constexpr char32_t final_sigma = 0x3C2;
  std::u32string wide;
  for (; !text.empty(); text.remove_prefix(utf8_length(text.front()))) {
    wide.push_back(first_character(text));
  }
  std::size_t begin = 0;
  std::size_t end = wide.size();
  while (begin < end && is_python_space(wide[begin])) ++begin;
  while (end > begin && is_python_space(wide[end - 1])) --end;
  std::string out;
  for (std::size_t i = begin; i < end; ++i) {
    if (wide[i] == capital_sigma && is_final(wide, i)) {
      append_utf8(out, final_sigma);
    } else {
      for (const char32_t c : lowercase(std::u32string_view(wide).substr(i, 1))) {
        append_utf8(out, c);
      }
    }
  }
  return out;
}

}  // namespace intaglio
