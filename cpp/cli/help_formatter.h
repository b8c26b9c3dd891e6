#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace intaglio::cli {

// Formats --help as CLI11 does, but wraps the descriptions of the options and puts only one empty
// line between groups.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_desc(const CLI::Option* option) const override;
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override;
};

// Moves the flag --help, which CLI11 adds first, after the options that `command` has now.
void move_help_flag_to_end(CLI::App& command);

}  // namespace intaglio::cli
