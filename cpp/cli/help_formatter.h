#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace intaglio::cli {

// Formats --help as CLI11 2.1 does, also with later versions, but wraps the descriptions of the
// options and puts only one empty line between groups.
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter() { label("POSITIONALS", "Positionals"); }
  std::string make_option(const CLI::Option* option, bool is_positional) const override;
  std::string make_description(const CLI::App* app) const override;
  std::string make_usage(const CLI::App* app, std::string name) const override;
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override;
};

// Moves the flag --help, which CLI11 adds first, after the options that `command` has now.
void move_help_flag_to_end(CLI::App& command);

}  // namespace intaglio::cli
