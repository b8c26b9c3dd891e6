// The Unicode steps that tokenizers share, on code points. Characters that are newer than the
// Unicode of the utf8proc in use count as CharClass::other and keep their case.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace intaglio {

// Code points from first to last.
struct CharRange {
  char32_t first, last;
};

// Whether one of `ranges`, which stand in order, has `c`.
bool within(std::span<const CharRange> ranges, char32_t c);

enum class CharClass { space, letter, number, other };

// White_Space, \p{L}, \p{N}, the rest.
CharClass classify(char32_t c);

bool is_space(char32_t c);  // White_Space

// The first byte that is not UTF-8.
std::optional<std::size_t> invalid_utf8(std::string_view text);

// Throws InputError naming that byte.
void check_utf8(std::string_view text);

// Normalization form C, as the `tokenizers` library forms it: marks newer than Unicode 9 stay where
// they are. `text` must be valid UTF-8.
std::u32string nfc(std::string_view text);

// Every run of white space becomes one space.
std::u32string collapse_spaces(std::u32string_view text);

// Character by character, without regard to context: a final sigma stays medial. One character may
// become two (U+0130).
std::u32string lowercase(std::u32string_view text);

// Appends `c` in UTF-8.
void append_utf8(std::string& out, char32_t c);

// The bytes of a character that begins with `lead`; 0 for the inside of one.
std::size_t utf8_length(char lead);

// The first character of `text` (valid UTF-8, not empty), or its last one.
char32_t first_character(std::string_view text);
char32_t last_character(std::string_view text);

// The bytes of the first extended grapheme cluster (UAX 29) of `text` (valid UTF-8, not empty).
std::size_t grapheme_length(std::string_view text);

// Python's text.lower().strip(): a sigma at the end of a word becomes a final one. `text` must be
// valid UTF-8.
std::string python_lower_strip(std::string_view text);

}  // namespace intaglio
