#pragma once

#include <string>

namespace intaglio::cli {

// What `--version` prints, and as JSON what a report of a fault needs to name.
std::string version_text(bool json);

}  // namespace intaglio::cli
