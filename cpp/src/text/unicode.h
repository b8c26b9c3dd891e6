// Unicode functions that several tokenizers use. A character that is newer than the Unicode version
// of the installed utf8proc is classified as CharClass::other and keeps its case.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace intaglio {

// The code points from first to last, both included.
struct CharRange {
  char32_t first, last;
};

// Whether one of `ranges`, which must be sorted, contains `c`.
bool contains(std::span<const CharRange> ranges, char32_t c);

enum class CharClass { space, letter, number, other };

// Classifies `c` by White_Space, \p{L} and \p{N}.
CharClass classify(char32_t c);

// Whether `c` has the property White_Space.
bool is_space(char32_t c);

// Returns the offset of the first byte that is not valid UTF-8.
std::optional<std::size_t> invalid_utf8(std::string_view text);

// Throws InputError naming that offset, for a prompt that is not valid UTF-8.
void check_utf8(std::string_view text);

// Normalizes `text`, which must be valid UTF-8, to form C as the `tokenizers` library does: marks
// that are newer than Unicode 9 are neither reordered nor composed.
std::u32string nfc(std::string_view text);

// Replaces every run of white space by one space.
std::u32string collapse_spaces(std::u32string_view text);

// Lowers each character without regard to its neighbours, so a capital sigma at the end of a word
// becomes a medial sigma. One character, U+0130, becomes two.
std::u32string lowercase(std::u32string_view text);

// Returns the characters of `text`, which must be valid UTF-8.
std::u32string decode_utf8(std::string_view text);

// Appends `c` in UTF-8.
void append_utf8(std::string& out, char32_t c);

// Returns the length in bytes of a character that starts with `lead`, or 0 when `lead` is a
// continuation byte.
std::size_t utf8_length(char lead);

// Return the first and the last character of `text`, which must be valid UTF-8 and not empty.
char32_t first_character(std::string_view text);
char32_t last_character(std::string_view text);

// Return the length in bytes of the white space at the beginning and at the end of `text`, which
// must be valid UTF-8.
std::size_t leading_space(std::string_view text);
std::size_t trailing_space(std::string_view text);

// Returns the length in bytes of the first extended grapheme cluster (UAX 29) of `text`, which must
// be valid UTF-8 and not empty.
std::size_t grapheme_length(std::string_view text);

// Returns what Python's text.lower().strip() does; a capital sigma at the end of a word becomes a
// final sigma. `text` must be valid UTF-8.
std::string python_lower_strip(std::string_view text);

}  // namespace intaglio
