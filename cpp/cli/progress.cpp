#include "cli/progress.h"

#include <chrono>
#include <cstdio>
#include <utility>

#include "platform/terminal.h"

namespace intaglio::cli {

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

ProgressBar::ProgressBar(std::string label, std::string unit)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      terminal_(platform::error_is_terminal()),
      start_(now()) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputc('\n', stderr);
}

void ProgressBar::show(int done, int total) {
  if (!terminal_) return;
  constexpr int width = 30;
  const int filled = width * done / total;
  const std::string bar = std::string(static_cast<std::size_t>(filled), '#') +
                          std::string(static_cast<std::size_t>(width - filled), '.');
  std::fprintf(stderr, "\r%s [%s] %d/%d  %.1f %s/s ", label_.c_str(), bar.c_str(), done, total,
               done / (now() - start_), unit_.c_str());
  drawn_ = true;
}

}  // namespace intaglio::cli
