// Conversions that every binding file shares: tensors are NumPy arrays in Python, images are PIL's.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include "gil.h"
#include "intaglio/image.h"
#include "intaglio/tensor.h"

namespace intaglio::python {

namespace py = pybind11;

// Returns a tensor over the memory of `array`, which must be float32, int64 or uint8 in C order on
// the CPU. Throws InputError for anything else; it never converts or copies.
Tensor tensor_from(py::handle array);
py::object to_numpy(const Tensor& tensor);
// Throws InputError naming the argument, since the library only asserts the type.
void require_float32(const Tensor& tensor, const char* argument);

// Reads a PIL image of any mode, as read_png reads it from a file, or a uint8 array [H, W] or [H,
// W, 3], which has no orientation in EXIF. Throws InputError.
Image image_from(py::handle picture);
py::object to_pil(const Image& image);

// Whether the object is one real number, of Python or of a library: a 0-d array too, which has a
// length by name only.
inline bool is_number(PyObject* object) {
  if (!PyNumber_Check(object) || PyComplex_Check(object)) return false;
  const bool has_length = PyObject_Size(object) >= 0;
  PyErr_Clear();
  return !has_length;
}

}  // namespace intaglio::python

namespace pybind11::detail {

template <>
struct type_caster<intaglio::Tensor> {
  PYBIND11_TYPE_CASTER(intaglio::Tensor, io_name("typing.Any", "numpy.typing.NDArray[typing.Any]"));
  bool load(handle source, bool) {
    value = intaglio::python::tensor_from(source);
    return true;
  }
  static handle cast(const intaglio::Tensor& tensor, return_value_policy, handle) {
    return intaglio::python::to_numpy(tensor).release();
  }
};

template <>
struct type_caster<intaglio::Image> {
  PYBIND11_TYPE_CASTER(intaglio::Image, const_name("PIL.Image.Image"));
  bool load(handle source, bool) {
    value = intaglio::python::image_from(source);
    return true;
  }
  static handle cast(const intaglio::Image& image, return_value_policy, handle) {
    return intaglio::python::to_pil(image).release();
  }
};

}  // namespace pybind11::detail
