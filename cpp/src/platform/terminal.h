// The terminal that a command runs in.
#pragma once

#include <memory>

namespace intaglio::platform {

// Whether a person sees what goes to standard error.
bool error_is_terminal();

// Handles Ctrl-C while it exists: the first one sets a flag, which stops the run after its current
// step, and the second one ends the process.
class InterruptFlag {
 public:
  InterruptFlag();
  ~InterruptFlag();
  static bool raised();

 private:
  struct Handler;
  std::unique_ptr<Handler> previous_;
};

}  // namespace intaglio::platform
