#include "cli/help_formatter.h"

#include <sstream>
#include <utility>

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

std::string HelpFormatter::make_help(const CLI::App* app, std::string name,
                                     CLI::AppFormatMode mode) const {
  const std::string help = CLI::Formatter::make_help(app, std::move(name), mode);
  return CLI::detail::find_and_replace(help, "\n\n\n", "\n\n");
}

void move_help_flag_to_end(CLI::App& command) {
  // The strings are copied, because set_help_flag destroys the old flag before it adds the new one.
  const std::string name = command.get_help_ptr()->get_name(false, true);
  const std::string description = command.get_help_ptr()->get_description();
  command.set_help_flag(name, description);
}

}  // namespace intaglio::cli
