#include "platform/terminal.h"

#include <io.h>

#include <csignal>
#include <cstdio>

namespace intaglio::platform {

namespace {

volatile std::sig_atomic_t interrupted = 0;

}  // namespace

struct InterruptFlag::Handler {
  void (*function)(int) = nullptr;
};

bool error_is_terminal() { return ::_isatty(::_fileno(stderr)) != 0; }

// The C library calls the handler for Ctrl-C once, and then restores the default, which ends the
// process.
InterruptFlag::InterruptFlag() : previous_(std::make_unique<Handler>()) {
  interrupted = 0;
  previous_->function = std::signal(SIGINT, [](int) { interrupted = 1; });
}

InterruptFlag::~InterruptFlag() { std::signal(SIGINT, previous_->function); }

bool InterruptFlag::raised() { return interrupted != 0; }

}  // namespace intaglio::platform
