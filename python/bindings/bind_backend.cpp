#include "bindings.h"
#include "casters.h"
#include "intaglio/backend.h"
#include "intaglio/bundle.h"

namespace intaglio::python {

void bind_backend(py::module_& module) {
  py::class_<BackendOptions>(module, "BackendOptions", "Where graphs run.")
      .def(py::init([](std::string device, int threads, std::filesystem::path onnxruntime_library,
                       bool prepack) {
             return BackendOptions{std::move(device), threads, std::move(onnxruntime_library),
                                   prepack};
           }),
           py::kw_only(), py::arg("device") = "auto", py::arg("threads") = 0,
           py::arg("onnxruntime_library") = std::filesystem::path(), py::arg("prepack") = false)
      .def_readwrite("device", &BackendOptions::device)
      .def_readwrite("threads", &BackendOptions::threads, "0: one per logical core")
      .def_readwrite("onnxruntime_library", &BackendOptions::onnxruntime_library,
                     "empty: searched for")
      .def_readwrite(
          "prepack", &BackendOptions::prepack,
          "whether the loop's weights are packed for the processor when they are loaded");
  py::class_<DeviceChoice>(module, "DeviceChoice", "The device that make_backend took.")
      .def_readonly("device", &DeviceChoice::device, "never auto")
      .def_readonly("reason", &DeviceChoice::reason,
                    "for auto: why not each better one; else empty")
      .def_readonly("note", &DeviceChoice::note,
                    "the part of it that points at something to repair, or empty");
  py::class_<Backend, std::shared_ptr<Backend>>(module, "Backend", "What graphs run on.")
      .def_property_readonly("description", &Backend::description)
      .def_readonly("choice", &Backend::choice)
      .def("__repr__",
           [](const Backend& backend) { return "<Backend: " + backend.description() + ">"; });
  py::class_<StreamCounts>(module, "StreamCounts",
                           "What a run asked of the memory that it works on.")
      .def_readonly("allocations", &StreamCounts::allocations)
      .def_readonly("copies", &StreamCounts::copies)
      .def_readonly("copied_bytes", &StreamCounts::copied_bytes)
      .def("__repr__", [](const py::object& self) {
        return py::str(
                   "StreamCounts(allocations={0.allocations}, copies={0.copies}, "
                   "copied_bytes={0.copied_bytes})")
            .format(self);
      });
  module.def("device_names", &device_names, "What BackendOptions.device may be.");
  module.def("make_backend", &make_backend, py::arg("options"), py::arg("bundle"),
             py::call_guard<py::gil_scoped_release>(),
             "What runs this bundle's graphs. Raises UsageError for an unknown device, and "
             "UnavailableError when the device, its library or its engines are not there.");
}

}  // namespace intaglio::python
