#include "cli/console.h"

#include <iostream>
#include <utility>

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

std::string exit_code_help() {
  constexpr std::pair<ExitCode, const char*> meanings[] = {
      {ExitCode::ok, "all is done"},
      {ExitCode::usage, "an option is unknown or makes no sense"},
      {ExitCode::bad_input, "a bundle, file, prompt or picture cannot be used or written"},
      {ExitCode::unavailable, "a device, a library or a Python package is missing"},
      {ExitCode::out_of_memory, "there is too little memory"},
      {ExitCode::interrupted, "Ctrl-C stopped the run"}};
  std::string lines = "Exit codes:";
  for (const auto& [code, meaning] : meanings) {
    const std::string number = std::to_string(static_cast<int>(code));
    lines += "\n  " + number + std::string(5 - number.size(), ' ') + meaning;
  }
  return lines;
}

int print_error(const std::string& message, ExitCode code) {
  std::cerr << "intaglio: " << one_line(message) << std::endl;
  return static_cast<int>(code);
}

void print_notes(const std::vector<std::string>& notes) {
  for (const std::string& note : notes) std::cerr << "intaglio: note: " << one_line(note) << '\n';
}

}  // namespace intaglio::cli
