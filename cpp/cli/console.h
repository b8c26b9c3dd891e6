// Messages on stderr, one line each.
#pragma once

#include <string>
#include <vector>

#include "intaglio/error.h"

namespace intaglio::cli {

// Prints the message of an error and returns its exit code.
int print_error(const std::string& message, ExitCode code);

// Prints what the user should know although it is not an error.
void print_notes(const std::vector<std::string>& notes);

}  // namespace intaglio::cli
