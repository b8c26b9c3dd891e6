// Encodes Python text as the bytes that the library checks.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace intaglio::python {

// Lone surrogates become bytes that are not UTF-8, so that the library refuses them with its own
// message instead of Python's UnicodeEncodeError.
inline std::string utf8_of(const pybind11::str& text) {
  return text.attr("encode")("utf-8", "surrogatepass").cast<std::string>();
}

}  // namespace intaglio::python
