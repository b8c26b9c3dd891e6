// The Unicode steps that tokenizers share, on code points. Characters that are newer than the
// Unicode of the utf8proc in use count as CharClass::other and keep their case.
#pragma once

#include <string>
#include <string_view>

namespace intaglio {

enum class CharClass { space, letter, number, other };

// White_Space, \p{L}, \p{N}, the rest.
CharClass classify(char32_t c);

// Throws InputError naming the first byte that is not UTF-8.
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

}  // namespace intaglio
