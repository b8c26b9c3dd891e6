// Reads Python's keywords into GenerateOptions, by the library's one list of options.
#pragma once

#include <pybind11/pybind11.h>

#include "intaglio/generate_options.h"

namespace intaglio::python {

// Leaves an option whose keyword is None at its default. Throws UsageError for a value of the wrong
// type and for an unknown keyword, and InputError for a picture or an array that cannot be used.
GenerateOptions options_from(const pybind11::dict& keywords);

}  // namespace intaglio::python
