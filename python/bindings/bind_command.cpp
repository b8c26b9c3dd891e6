#include <cstdio>
#include <iostream>

#include "bindings.h"
#include "casters.h"
#include "intaglio/command.h"

namespace intaglio::python {
namespace {

// Returns the arguments as the process got them, including bytes that are not text.
std::vector<std::string> bytes_of(const std::vector<py::str>& args) {
  std::vector<std::string> bytes;
  for (const py::str& arg : args) {
    const auto encoded = py::reinterpret_steal<py::bytes>(PyUnicode_EncodeFSDefault(arg.ptr()));
    if (!encoded) throw py::error_already_set();
    bytes.push_back(encoded);
  }
  return bytes;
}

}  // namespace

void bind_command(py::module_& module) {
  module.def(
      "run_command",
      [](const std::vector<py::str>& args) {
        const std::vector<std::string> bytes = bytes_of(args);
        const ReleasedGil release;
        const int code = run_command(bytes);
        std::cout.flush();  // before Python's own output
        std::fflush(stdout);
        return code;
      },
      py::arg("args"),
      "Run the whole command line in this process; `args` does not include the program's name. "
      "Returns the exit "
      "code.");
}

}  // namespace intaglio::python
