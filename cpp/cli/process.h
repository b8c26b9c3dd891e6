#pragma once

#include <cstdint>
#include <optional>

namespace intaglio::cli {

// Returns the wall-clock seconds since this process was started, with a resolution of a hundredth
// of a second, or nothing where /proc/self/stat cannot be read.
std::optional<double> seconds_since_process_start();

// Returns the largest resident memory of this process so far, which includes mapped files, or
// nothing where /proc/self/status cannot be read.
std::optional<std::int64_t> peak_memory_bytes();

}  // namespace intaglio::cli
