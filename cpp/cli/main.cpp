#include <csignal>

#include "intaglio/command.h"

int main(int argc, char** argv) {
  // A file beyond the size limit is then an error of write() with a message, not a killed process.
  std::signal(SIGXFSZ, SIG_IGN);
  return intaglio::run_command({argv + 1, argv + argc});
}
