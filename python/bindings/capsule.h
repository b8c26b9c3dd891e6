// How a tensor crosses between `_core` (pybind11) and `_tensor` (nanobind): as a PyCapsule of this
// name that owns an intaglio::Tensor. The copy is of the handle; the memory is shared.
#pragma once

#include <Python.h>

#include "intaglio/tensor.h"

namespace intaglio::python {

inline constexpr const char* kTensorCapsule = "intaglio.Tensor";

// A new reference, or null with a Python error set.
inline PyObject* to_capsule(const Tensor& tensor) {
  auto* copy = new Tensor(tensor);
  PyObject* capsule = PyCapsule_New(copy, kTensorCapsule, [](PyObject* self) {
    delete static_cast<Tensor*>(PyCapsule_GetPointer(self, kTensorCapsule));
  });
  if (!capsule) delete copy;
  return capsule;
}

// Borrowed from the capsule, or null with a Python error set.
inline Tensor* from_capsule(PyObject* capsule) {
  return static_cast<Tensor*>(PyCapsule_GetPointer(capsule, kTensorCapsule));
}

}  // namespace intaglio::python
