#pragma once

#include <cstdint>
#include <optional>

namespace intaglio::cli {

// Wall-clock seconds since this process was started, to a hundredth, from Linux's /proc/self/stat;
// nothing without it.
std::optional<double> seconds_since_process_start();

// The most memory that this process has had resident so far, mapped files included; nothing without
// /proc.
std::optional<std::int64_t> peak_memory_bytes();

}  // namespace intaglio::cli
