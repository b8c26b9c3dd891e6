#pragma once

#include <csignal>

namespace intaglio::cli {

// Handles Ctrl-C while it exists: the first one sets a flag, which stops the run after its current
// step, and the second one ends the process.
class InterruptFlag {
 public:
  InterruptFlag();
  ~InterruptFlag();
  static bool raised();

 private:
  struct sigaction previous_{};
};

}  // namespace intaglio::cli
