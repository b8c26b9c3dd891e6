#pragma once

namespace intaglio::cli {

// Wall-clock seconds since this process was started, to a hundredth (Linux's /proc/self/stat; 0
// without it).
double seconds_since_process_start();

}  // namespace intaglio::cli
