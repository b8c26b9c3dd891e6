#include "bindings.h"
#include "casters.h"
#include "intaglio/memory_plan.h"
#include "options.h"

namespace intaglio::python {

void bind_memory_plan(py::module_& module) {
  py::class_<MemoryPhase>(module, "MemoryPhase", "A part of a bundle while it runs, in bytes.")
      .def_readonly("part", &MemoryPhase::part,
                    "an encoder's name, transformer, vae_encoder or vae_decoder")
      .def_readonly("weights", &MemoryPhase::weights)
      .def_readonly("activations", &MemoryPhase::activations,
                    "an estimate of all else that is needed at once")
      .def_readonly("on_cpu", &MemoryPhase::on_cpu,
                    "whether it runs there although the device is another")
      .def("__repr__", [](const py::object& self) {
        return py::str("MemoryPhase({0.part}, weights={0.weights}, activations={0.activations})")
            .format(self);
      });
  py::class_<MemoryPlan>(module, "MemoryPlan",
                         "What a run keeps in memory, known before anything is loaded.")
      .def_readonly("device", &MemoryPlan::device)
      .def_readonly("limit", &MemoryPlan::limit, "in bytes; 0: none")
      .def_readonly("program", &MemoryPlan::program,
                    "bytes that the process has already, where the device is the CPU")
      .def_readonly("phases", &MemoryPlan::phases, "in the order of the run")
      .def_readonly("in_turn", &MemoryPlan::in_turn,
                    "whether each part is let go before the next one is loaded")
      .def_readonly("vae_tile", &MemoryPlan::vae_tile, "in pixels")
      .def_readonly("images_at_once", &MemoryPlan::images_at_once,
                    "that share the transformer; where these are not all, the run has groups")
      .def_property_readonly("peak", &MemoryPlan::peak,
                             "the most bytes that the device has to hold at once")
      .def("__repr__", [](const py::object& self) {
        return py::str("MemoryPlan(device={0.device!r}, in_turn={0.in_turn}, peak={0.peak})")
            .format(self);
      });
  module.def(
      "plan_memory",
      [](const Bundle& bundle, const py::dict& options, const std::string& device,
         const std::string& max_memory, bool prepack, std::int64_t together) {
        return plan_memory(bundle, options_from(options), memory_limit(max_memory, device, prepack),
                           together);
      },
      py::arg("bundle"), py::arg("options") = py::dict(), py::kw_only(), py::arg("device") = "cpu",
      py::arg("max_memory") = "", py::arg("prepack") = false, py::arg("together") = 0,
      "Return the plan of a run with these keywords of generate(), of which `together` images\n"
      "share the transformer. `device` is one that works. Raises UsageError for a size that makes\n"
      "no sense, and OutOfMemoryError, which names what would fit, where nothing keeps the run\n"
      "to the limit.");
}

}  // namespace intaglio::python
