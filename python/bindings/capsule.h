// Tensors cross between `_core` (pybind11) and `_tensor` (nanobind) as a PyCapsule of this name,
// which owns an intaglio::Tensor. The handle is copied and the memory is shared.
#pragma once

#include <Python.h>

#include "intaglio/tensor.h"

namespace intaglio::python {

inline constexpr const char* kTensorCapsule = "intaglio.Tensor";

// Returns a new reference, or null with a Python error set.
inline PyObject* to_capsule(const Tensor& tensor) {
  auto* copy = new Tensor(tensor);
  PyObject* capsule = PyCapsule_New(copy, kTensorCapsule, [](PyObject* self) {
    delete static_cast<Tensor*>(PyCapsule_GetPointer(self, kTensorCapsule));
  });
  if (!capsule) delete copy;
  return capsule;
}

// Returns a pointer that the capsule owns, or null with a Python error set.
inline Tensor* from_capsule(PyObject* capsule) {
  return static_cast<Tensor*>(PyCapsule_GetPointer(capsule, kTensorCapsule));
}

}  // namespace intaglio::python
