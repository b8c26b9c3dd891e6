// The `intaglio` command: generate, embed, inspect, bench.
#pragma once

#include <string>
#include <vector>

namespace intaglio {

// Runs the command line `args`, which does not include the program's name. Results go to stdout,
// messages and progress to stderr. Returns the exit code (error.h). Ctrl-C stops a run within a
// step.
int run_command(const std::vector<std::string>& args);

}  // namespace intaglio
