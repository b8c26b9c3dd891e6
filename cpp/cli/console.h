// What is printed for people, one line each.
#pragma once

#include <string>
#include <vector>

#include "intaglio/error.h"

namespace intaglio::cli {

// Replaces control characters, which a bundle, a file name or a message of ONNX Runtime may contain
// and which a terminal would obey.
std::string one_line(std::string text);

// Returns the lines of the help that say which exit code means what.
std::string exit_code_help();

// Prints the message of an error on stderr and returns its exit code.
int print_error(const std::string& message, ExitCode code);

// Prints on stderr what the user should know although it is not an error.
void print_notes(const std::vector<std::string>& notes);

}  // namespace intaglio::cli
