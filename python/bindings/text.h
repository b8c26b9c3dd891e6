// Python text to the bytes that the library checks.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace intaglio::python {

// Lone surrogates become bytes that are no UTF-8, so the library refuses them with its own
// sentence instead of Python's UnicodeEncodeError.
inline std::string utf8_of(const pybind11::str& text) {
  return text.attr("encode")("utf-8", "surrogatepass").cast<std::string>();
}

}  // namespace intaglio::python
