#include "bindings.h"
#include "casters.h"
#include "intaglio/batch.h"
#include "options.h"

namespace intaglio::python {
namespace {

std::int64_t add(Batch& batch, const py::kwargs& keywords) {
  const GenerateOptions options = options_from(keywords);
  const ReleasedGil release;
  return batch.add(options);
}

bool accepts(const Batch& batch, const py::kwargs& keywords) {
  const GenerateOptions options = options_from(keywords);
  const ReleasedGil release;
  return batch.accepts(options);
}

}  // namespace

void bind_batch(py::module_& module) {
  using Released = py::call_guard<ReleasedGil>;
  py::class_<BatchStep>(module, "BatchStep", "A step of one member of a batch that has ended.")
      .def_readonly("id", &BatchStep::id)
      .def_readonly("step", &BatchStep::step, "just done, from 0")
      .def_readonly("steps", &BatchStep::steps)
      .def_readonly("sigma", &BatchStep::sigma, "the step started from")
      .def_readonly("timestep", &BatchStep::timestep,
                    "of the step's last evaluation of the model, in the scheduler's unit")
      .def_readonly("skipped", &BatchStep::skipped, "the model did not run")
      .def_readonly("done", &BatchStep::done, "it was the last")
      .def_property_readonly(
          "error",
          [](const BatchStep& step) -> py::object {
            return step.error ? exception_of(*step.error) : py::none();
          },
          "the error that generate() would have raised, or None")
      .def(
          "preview", [](const BatchStep& step) { return step.preview(); }, Released(),
          "Return the estimate of the clean images after this step, decoded.")
      .def(
          "finish", [](const BatchStep& step) { return step.finish(); }, Released(),
          "Return what generate() returns. Raises UsageError before the last step.");
  py::class_<Batch>(module, "Batch",
                    "Requests that run together; `intaglio.Batch` is the typed front end.")
      .def(py::init<const Pipeline&, std::int64_t>(), py::arg("pipeline"),
           py::arg("max_images") = 8)
      .def("add", &add,
           "Take a request in, with the keywords of Pipeline.generate() but on_step. Returns its "
           "id.")
      .def("accepts", &accepts, "Return whether add() would take the request in.")
      .def("remove", &Batch::remove, py::arg("id"), Released())
      .def("step", &Batch::step, Released(),
           "Run one evaluation of every member in one run of the transformer.")
      .def("__len__", &Batch::size)
      .def_property_readonly("images", &Batch::images, "the number of images of all members")
      .def_property_readonly("in_turn", &Batch::in_turn,
                             "whether a member runs whose parts are loaded in turn");
}

}  // namespace intaglio::python
