#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace intaglio::cli {

// Formats --help as CLI11 does, and wraps the descriptions of the options.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_desc(const CLI::Option* option) const override;
};

}  // namespace intaglio::cli
