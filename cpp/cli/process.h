#pragma once

#include <optional>

namespace intaglio::cli {

// Wall-clock seconds since this process was started, to a hundredth, from Linux's /proc/self/stat;
// nothing without it.
std::optional<double> seconds_since_process_start();

}  // namespace intaglio::cli
