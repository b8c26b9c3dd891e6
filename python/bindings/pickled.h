// Lets Python pickle and copy a struct of plain values.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>

namespace intaglio::python {

// What .def() takes to make a class picklable that has these members and no others.
template <typename T, typename... Members>
auto pickled(Members T::*... members) {
  return pybind11::pickle(
      [members...](const T& value) { return pybind11::make_tuple(value.*members...); },
      [members...](const pybind11::tuple& state) {
        T value;
        std::size_t i = 0;
        ((value.*members = state[i++].cast<Members>()), ...);
        return value;
      });
}

}  // namespace intaglio::python
