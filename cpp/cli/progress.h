#pragma once

#include <string>

namespace intaglio::cli {

// A progress bar on stderr. Its line ends when it goes out of scope.
class ProgressBar {
 public:
  // `unit` is the plural of what the bar counts.
  ProgressBar(std::string label, std::string unit);
  ~ProgressBar();
  // Draws the bar, unless stderr is not a terminal.
  void show(int done, int total);

 private:
  std::string label_, unit_;
  bool terminal_;
  bool drawn_ = false;
  double start_;
};

}  // namespace intaglio::cli
