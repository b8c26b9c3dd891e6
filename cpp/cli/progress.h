// A progress bar on stderr, and Ctrl-C turned into a flag, for as long as they live.
#pragma once

#include <csignal>
#include <string>

#include "intaglio/pipeline.h"

namespace intaglio::cli {

class ProgressBar {
 public:
  // `unit` is what the bar counts, in the plural.
  ProgressBar(std::string label, std::string unit);
  ~ProgressBar();
  // Draws only when stderr is a terminal.
  void show(int done, int total);

 private:
  std::string label_, unit_;
  bool terminal_;
  bool drawn_ = false;
  double start_;
};

// The first Ctrl-C asks the run to stop after its step; the second ends the process.
class InterruptFlag {
 public:
  InterruptFlag();
  ~InterruptFlag();
  static bool raised();

 private:
  struct sigaction previous_{};
};

}  // namespace intaglio::cli
