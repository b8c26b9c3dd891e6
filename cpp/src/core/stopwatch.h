#pragma once

#include <chrono>
#include <utility>

namespace intaglio {

// Measures wall-clock time between calls of lap().
class Stopwatch {
 public:
  // Returns the seconds since the last call, or since the stopwatch was made.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(start_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace intaglio
