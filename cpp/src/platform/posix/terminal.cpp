#include "platform/terminal.h"

#include <unistd.h>

#include <csignal>

namespace intaglio::platform {

namespace {

volatile std::sig_atomic_t interrupted = 0;

}  // namespace

struct InterruptFlag::Handler {
  struct sigaction action{};
};

bool error_is_terminal() { return ::isatty(STDERR_FILENO) != 0; }

InterruptFlag::InterruptFlag() : previous_(std::make_unique<Handler>()) {
  interrupted = 0;
  struct sigaction action{};
  action.sa_handler = [](int) { interrupted = 1; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  ::sigaction(SIGINT, &action, &previous_->action);
}

InterruptFlag::~InterruptFlag() { ::sigaction(SIGINT, &previous_->action, nullptr); }

bool InterruptFlag::raised() { return interrupted != 0; }

}  // namespace intaglio::platform
