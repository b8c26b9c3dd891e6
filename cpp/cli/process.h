#pragma once

namespace intaglio::cli {

// Wall-clock seconds since this process was started, to a hundredth (Linux's /proc/self/stat).
double seconds_since_process_start();

}  // namespace intaglio::cli
