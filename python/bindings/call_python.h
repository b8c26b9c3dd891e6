// Calls of Python code that are safe in a process that ends (gil.h).
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

#include "gil.h"

namespace intaglio::python {

// Returns what `function` returned, a new reference. Throws the Python exception where it is null.
template <typename Function>
pybind11::object call_python(const Function& function) {
  PyObject* result = or_stop_thread(function);
  if (!result) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(result);
}

// Calls the function of that name in a module of Python.
template <typename... Args>
pybind11::object call_function(const char* module, const char* name, Args&&... args) {
  const pybind11::object imported = call_python([=] { return PyImport_ImportModule(module); });
  const pybind11::object function = imported.attr(name);
  const pybind11::tuple given = pybind11::make_tuple(std::forward<Args>(args)...);
  return call_python([&] { return PyObject_CallObject(function.ptr(), given.ptr()); });
}

}  // namespace intaglio::python
