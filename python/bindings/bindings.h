// One function for each public header, in the order in which the types need each other.
#pragma once

#include <pybind11/pybind11.h>

#include "intaglio/error.h"

namespace intaglio::python {

void bind_error(pybind11::module_& module);
void bind_tensor(pybind11::module_& module);
void bind_rng(pybind11::module_& module);
void bind_image(pybind11::module_& module);
void bind_tokenizer(pybind11::module_& module);
void bind_sampling(pybind11::module_& module);
void bind_guidance(pybind11::module_& module);
void bind_bundle(pybind11::module_& module);
void bind_backend(pybind11::module_& module);
void bind_embedding(pybind11::module_& module);
void bind_options(pybind11::module_& module);
void bind_pipeline(pybind11::module_& module);
void bind_memory_plan(pybind11::module_& module);
void bind_batch(pybind11::module_& module);
void bind_command(pybind11::module_& module);

// Returns the exception that the error becomes in Python, without raising it.
pybind11::object exception_of(const Error& error);

}  // namespace intaglio::python
