#include <csignal>

#include "intaglio/command.h"

int main(int argc, char** argv) {
  // Without this, a file that exceeds the size limit of the process kills it. With it, write()
  // returns an error, which becomes a message.
  std::signal(SIGXFSZ, SIG_IGN);
  return intaglio::run_command({argv + 1, argv + argc});
}
