#include "cli/console.h"

#include <iostream>

namespace intaglio::cli {

std::string one_line(std::string text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte < ' ' || byte == 0x7f) text[i] = ' ';
    // U+0080 to U+009F in UTF-8: terminals take U+009B for Escape and [.
    const bool high = byte == 0xc2 && i + 1 < text.size();
    if (high && static_cast<unsigned char>(text[i + 1]) < 0xa0) text.replace(i, 2, " ");
  }
  return text;
}

int print_error(const std::string& message, ExitCode code) {
  std::cerr << "intaglio: " << one_line(message) << std::endl;
  return static_cast<int>(code);
}

void print_notes(const std::vector<std::string>& notes) {
  for (const std::string& note : notes) std::cerr << "intaglio: note: " << one_line(note) << '\n';
}

}  // namespace intaglio::cli
