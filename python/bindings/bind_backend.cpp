#include "bindings.h"
#include "casters.h"
#include "intaglio/backend.h"
#include "intaglio/bundle.h"

namespace intaglio::python {

void bind_backend(py::module_& module) {
  py::class_<BackendOptions>(module, "BackendOptions", "Where graphs run.")
      .def(py::init([](std::string device, int threads, std::filesystem::path onnxruntime_library) {
             return BackendOptions{std::move(device), threads, std::move(onnxruntime_library)};
           }),
           py::kw_only(), py::arg("device") = "cpu", py::arg("threads") = 0,
           py::arg("onnxruntime_library") = std::filesystem::path())
      .def_readwrite("device", &BackendOptions::device)
      .def_readwrite("threads", &BackendOptions::threads, "0: one per logical core")
      .def_readwrite("onnxruntime_library", &BackendOptions::onnxruntime_library,
                     "empty: searched for");
  py::class_<Backend, std::shared_ptr<Backend>>(module, "Backend", "What graphs run on.")
      .def_property_readonly("description", &Backend::description)
      .def("__repr__",
           [](const Backend& backend) { return "<Backend: " + backend.description() + ">"; });
  module.def("make_backend", &make_backend, py::arg("options"), py::arg("bundle"),
             py::call_guard<py::gil_scoped_release>(),
             "What runs this bundle's graphs. Raises UnavailableError when the device, its library "
             "or its engines are not there.");
}

}  // namespace intaglio::python
