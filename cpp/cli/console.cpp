#include "cli/console.h"

#include <iostream>

namespace intaglio::cli {

namespace {

// Replaces control characters, which a file name or a message of ONNX Runtime may contain.
std::string one_line(std::string message) {
  for (char& c : message) c = (c >= 0 && c < ' ') || c == 0x7f ? ' ' : c;
  return message;
}

}  // namespace

int print_error(const std::string& message, ExitCode code) {
  std::cerr << "intaglio: " << one_line(message) << std::endl;
  return static_cast<int>(code);
}

void print_notes(const std::vector<std::string>& notes) {
  for (const std::string& note : notes) std::cerr << "intaglio: note: " << one_line(note) << '\n';
}

}  // namespace intaglio::cli
