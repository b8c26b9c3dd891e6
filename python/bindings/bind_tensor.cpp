#include "bindings.h"
#include "call_python.h"
#include "capsule.h"
#include "casters.h"
#include "intaglio/error.h"
#include "intaglio/tensor.h"

namespace intaglio::python {

Tensor tensor_from(py::handle array) {
  py::object capsule;
  try {
    capsule = call_function("intaglio._tensor", "from_array", array);
  } catch (py::error_already_set& error) {
    // torch's own BufferError explains best that a tensor requires grad.
    if (error.matches(PyExc_TypeError)) {
      const auto type = py::str(py::type::handle_of(array).attr("__name__")).cast<std::string>();
      const auto dtype =
          py::str(py::getattr(array, "dtype", py::str("no dtype"))).cast<std::string>();
      throw InputError(
          "an array of float32, int64 or uint8 in C order in CPU memory is needed, not this " +
          type + " of " + dtype +
          ": convert it, for instance with numpy.ascontiguousarray(array, dtype=numpy.float32)");
    }
    throw;
  }
  Tensor* tensor = from_capsule(capsule.ptr());
  if (!tensor) throw py::error_already_set();
  return *tensor;
}

py::object to_numpy(const Tensor& tensor) {
  const auto capsule = py::reinterpret_steal<py::object>(to_capsule(tensor));
  if (!capsule) throw py::error_already_set();
  return call_function("intaglio._tensor", "to_numpy", capsule);
}

void require_float32(const Tensor& tensor, const char* argument) {
  if (tensor.dtype() == DType::float32) return;
  throw InputError(std::string(argument) + " must be float32, not " + name_of(tensor.dtype()));
}

void bind_tensor(py::module_& module) {
  module.def("load_npy", &load_npy, py::arg("path"), py::call_guard<ReleasedGil>(),
             "Load a .npy file of float32 or float64 in C order, as float32.\n\n"
             "Raises InputError naming the file when it is missing, truncated or of another kind.");
  module.def("save_npy", &save_npy, py::arg("path"), py::arg("tensor"),
             py::call_guard<ReleasedGil>(),
             "Write the file under a temporary name, then rename it.");
}

}  // namespace intaglio::python
