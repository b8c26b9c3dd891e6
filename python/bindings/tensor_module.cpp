// Passes tensors to and from every library that speaks DLPack, without a copy.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>

#include "capsule.h"
#include "gil.h"
#include "intaglio/tensor.h"

namespace nb = nanobind;

namespace intaglio::python {
namespace {

using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

// The last handle may be dropped in a thread that does not hold the GIL.
struct ArrayOwner {
  Array array;
  explicit ArrayOwner(Array held) : array(std::move(held)) {}
  ArrayOwner(const ArrayOwner&) = delete;
  ArrayOwner& operator=(const ArrayOwner&) = delete;
  ~ArrayOwner() {
    const HeldGil gil;
    array = Array();
  }
};

DType dtype_of(const Array& array) {
  if (array.dtype() == nb::dtype<float>()) return DType::float32;
  if (array.dtype() == nb::dtype<std::int64_t>()) return DType::int64;
  if (array.dtype() == nb::dtype<std::uint8_t>()) return DType::uint8;
  throw nb::type_error("an array of float32, int64 or uint8 is needed");
}

nb::object from_array(Array array) {
  const DType dtype = dtype_of(array);
  Shape shape(array.ndim());
  for (std::size_t axis = 0; axis < shape.size(); ++axis)
    shape[axis] = static_cast<std::int64_t>(array.shape(axis));
  // Tensor has no const memory, so whoever takes one from here must only read it.
  void* data = const_cast<void*>(array.data());
  auto owner = std::make_shared<ArrayOwner>(std::move(array));
  PyObject* capsule = to_capsule(Tensor(std::move(shape), dtype, data, std::move(owner)));
  if (!capsule) throw nb::python_error();
  return nb::steal(capsule);
}

nb::dlpack::dtype dlpack_dtype(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return nb::dtype<float>();
    case DType::int64:
      return nb::dtype<std::int64_t>();
    case DType::uint8:
      break;
  }
  return nb::dtype<std::uint8_t>();
}

nb::ndarray<nb::numpy> to_numpy(const nb::capsule& capsule) {
  Tensor* tensor = from_capsule(capsule.ptr());
  if (!tensor) throw nb::python_error();
  std::vector<std::size_t> shape(tensor->shape().begin(), tensor->shape().end());
  // The capsule keeps the memory alive for as long as the array.
  return nb::ndarray<nb::numpy>(tensor->data(), shape.size(), shape.data(), capsule, nullptr,
                                dlpack_dtype(tensor->dtype()));
}

}  // namespace

NB_MODULE(_tensor, module) {
  watch_interpreter();
  module.doc() = "Pass tensors to and from every library that speaks DLPack, without a copy.";
  module.def(
      "from_array", &from_array, nb::arg("array").noconvert(),
      nb::sig("def from_array(array: object) -> object"),
      "Return a tensor over the memory of `array`: any object with `__dlpack__` or the buffer "
      "protocol, of\n"
      "float32, int64 or uint8, in C order, in CPU memory. Nothing is copied, and the array "
      "lives as\n"
      "long as the tensor. Anything else raises TypeError.");
  module.def(
      "to_numpy", &to_numpy, nb::arg("tensor"),
      nb::sig("def to_numpy(tensor: object) -> numpy.typing.NDArray[typing.Any]"),
      "Return the tensor as a NumPy array over the same memory, which lives as long as the array.\n"
      "`torch.from_dlpack(array)` shares it further.");
}

}  // namespace intaglio::python
