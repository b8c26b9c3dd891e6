#include "bindings.h"
#include "casters.h"
#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/validate.h"
#include "pickled.h"

namespace intaglio::python {

namespace {

void bind_devices(py::module_& module) {
  py::class_<BackendOptions>(module, "BackendOptions", "Where graphs run.")
      .def(py::init([](std::string device, int threads, std::filesystem::path onnxruntime_library,
                       bool prepack, std::string precision, std::filesystem::path provider_library,
                       std::string max_memory) {
             return BackendOptions{.device = std::move(device),
                                   .threads = threads,
                                   .onnxruntime_library = std::move(onnxruntime_library),
                                   .provider_library = std::move(provider_library),
                                   .prepack = prepack,
                                   .precision = std::move(precision),
                                   .max_memory = std::move(max_memory)};
           }),
           py::kw_only(), py::arg("device") = "auto", py::arg("threads") = 0,
           py::arg("onnxruntime_library") = "", py::arg("prepack") = false,
           py::arg("precision") = "float32", py::arg("provider_library") = "",
           py::arg("max_memory") = "")
      .def_readwrite("device", &BackendOptions::device)
      .def_readwrite("threads", &BackendOptions::threads,
                     "0: one for each processor that the process may use")
      .def_readwrite("onnxruntime_library", &BackendOptions::onnxruntime_library,
                     "if empty, it is searched for")
      .def_readwrite("provider_library", &BackendOptions::provider_library,
                     "the library of a provider's plugin; if empty, it is searched for")
      .def_readwrite("prepack", &BackendOptions::prepack,
                     "whether the loop's weights are packed for the processor when they are loaded")
      .def_readwrite("precision", &BackendOptions::precision,
                     "what the device computes in: float32, bfloat16 or float16")
      .def_readwrite("max_memory", &BackendOptions::max_memory,
                     "the most memory that a run may take on the device: 8GB, auto, or empty");
  py::class_<DeviceStatus>(module, "DeviceStatus",
                           "One device and whether it works on this machine.")
      .def_readonly("device", &DeviceStatus::device)
      .def_readonly("works", &DeviceStatus::works)
      .def_readonly("runtime", &DeviceStatus::runtime,
                    "ONNX Runtime's version, and the provider with its version if it works")
      .def_readonly("card", &DeviceStatus::card, "name of the card or processor, if known")
      .def_readonly("memory_bytes", &DeviceStatus::memory_bytes, "all of its memory; 0: unknown")
      .def_readonly("driver", &DeviceStatus::driver, "version of NVIDIA's driver, for its cards")
      .def_readonly("reason", &DeviceStatus::reason, "why it does not work, or empty")
      .def_readonly("remedy", &DeviceStatus::remedy, "what would change that, or empty");
  py::class_<DeviceChoice>(module, "DeviceChoice", "The device that make_backend chose.")
      .def_readonly("device", &DeviceChoice::device, "never auto")
      .def_property_readonly(
          "reason", [](const DeviceChoice& choice) { return with_field_names(choice.reason); },
          "for auto: why each better device is not used; else empty")
      .def_property_readonly(
          "note", [](const DeviceChoice& choice) { return with_field_names(choice.note); },
          "the part of the reason that the user can do something about, or empty")
      .def_readonly("precision", &DeviceChoice::precision,
                    "the type of the matrix products: float32, bfloat16 or float16")
      .def_readonly("compiling", &DeviceChoice::compiling,
                    "says that the first run will compile; empty if it need not");
}

void bind_placement(py::module_& module) {
  py::class_<GraphPlacement>(module, "GraphPlacement",
                             "Where the nodes of a graph ran on another device than cpu.")
      .def_readonly("graph", &GraphPlacement::graph, "the path of the file in its bundle")
      .def_readonly("nodes", &GraphPlacement::nodes,
                    "number of nodes of the device's provider; one that compiles makes one of each "
                    "piece")
      .def_readonly("elsewhere", &GraphPlacement::elsewhere,
                    "by provider and operator, the number of nodes that other providers ran")
      .def("__repr__", [](const py::object& self) {
        return py::str("GraphPlacement({0.graph}, nodes={0.nodes}, elsewhere={0.elsewhere})")
            .format(self);
      });
}

}  // namespace

void bind_backend(py::module_& module) {
  bind_devices(module);
  bind_placement(module);
  py::class_<Backend, std::shared_ptr<Backend>>(module, "Backend", "What graphs run on.")
      .def_property_readonly("description", &Backend::description)
      .def_readonly("choice", &Backend::choice)
      .def("__repr__",
           [](const Backend& backend) { return "<Backend: " + backend.description() + ">"; });
  py::class_<StreamCounts>(module, "StreamCounts",
                           "What a run did with the memory that it works on.")
      .def_readonly("allocations", &StreamCounts::allocations)
      .def_readonly("copies", &StreamCounts::copies)
      .def_readonly("copied_bytes", &StreamCounts::copied_bytes)
      .def(pickled<StreamCounts>(&StreamCounts::allocations, &StreamCounts::copies,
                                 &StreamCounts::copied_bytes))
      .def("__repr__", [](const py::object& self) {
        return py::str(
                   "StreamCounts(allocations={0.allocations}, copies={0.copies}, "
                   "copied_bytes={0.copied_bytes})")
            .format(self);
      });
  module.def("device_names", &device_names, "Return what BackendOptions.device may be.");
  module.def("list_devices", &list_devices, py::arg("options"), py::call_guard<ReleasedGil>(),
             "Try every device with a graph of one node.");
  module.def("make_backend", &make_backend, py::arg("options"), py::arg("bundle"),
             py::call_guard<ReleasedGil>(),
             "Return what runs this bundle's graphs. Raises UsageError for an unknown device or a "
             "precision that it does not have, and UnavailableError when the device or its library "
             "is missing.");
}

}  // namespace intaglio::python
