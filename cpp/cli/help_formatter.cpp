#include "cli/help_formatter.h"

#include <sstream>

namespace intaglio::cli {

namespace {

constexpr std::size_t kHelpWidth = 96;  // columns

// Breaks the text at spaces into lines of at most `width` characters, unless a word is longer.
std::string wrapped(const std::string& text, std::size_t width) {
  std::istringstream words(text);
  std::string lines;
  std::size_t column = 0;
  for (std::string word; words >> word;) {
    const bool fits = column + 1 + word.size() <= width;
    if (column > 0) lines += fits ? ' ' : '\n';
    column = (column > 0 && fits ? column + 1 : 0) + word.size();
    lines += word;
  }
  return lines;
}

}  // namespace

std::string HelpFormatter::make_option_desc(const CLI::Option* option) const {
  return wrapped(option->get_description(), kHelpWidth - get_column_width());
}

}  // namespace intaglio::cli
