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

std::string HelpFormatter::make_option(const CLI::Option* option, bool is_positional) const {
  const std::string name =
      "  " + make_option_name(option, is_positional) + make_option_opts(option);
  const std::string text = wrapped(option->get_description(), kHelpWidth - get_column_width());
  if (text.empty()) return name + "\n";
  const std::string indent(get_column_width(), ' ');
  const bool fits = name.size() < get_column_width();
  const std::string gap = fits ? indent.substr(name.size()) : "\n" + indent;
  return name + gap + CLI::detail::find_and_replace(text, "\n", "\n" + indent) + "\n";
}

std::string HelpFormatter::make_description(const CLI::App* app) const {
  return app->get_description() + "\n";
}

std::string HelpFormatter::make_usage(const CLI::App* app, std::string name) const {
  std::string usage = CLI::Formatter::make_usage(app, std::move(name));
  CLI::detail::trim(usage);
  return (usage.starts_with("Usage:") ? "" : "Usage: ") + usage + "\n";
}

// CLI11's own function breaks the lines of descriptions and footers in later versions.
std::string HelpFormatter::make_help(const CLI::App* app, std::string name,
                                     CLI::AppFormatMode mode) const {
  using CLI::detail::find_and_replace;
  std::string help = make_description(app) + make_usage(app, std::move(name)) +
                     make_positionals(app) + make_groups(app, mode) + make_subcommands(app, mode);
  if (!app->get_footer().empty()) help += "\n" + app->get_footer() + "\n";
  help = find_and_replace(std::move(help), "\nOPTIONS:", "\nOptions:");
  help = find_and_replace(std::move(help), "\nSUBCOMMANDS:", "\nSubcommands:");
  help = find_and_replace(std::move(help), " \n", "\n");
  return find_and_replace(std::move(help), "\n\n\n", "\n\n");
}

void move_help_flag_to_end(CLI::App& command) {
  // The strings are copied, because set_help_flag destroys the old flag before it adds the new one.
  const std::string name = command.get_help_ptr()->get_name(false, true);
  const std::string description = command.get_help_ptr()->get_description();
  command.set_help_flag(name, description);
}

}  // namespace intaglio::cli
