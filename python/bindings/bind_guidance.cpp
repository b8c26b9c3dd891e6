#include <sstream>

#include "bindings.h"
#include "casters.h"
#include "intaglio/error.h"
#include "intaglio/guidance.h"

namespace intaglio::python {
namespace {

// NumPy's and torch's numbers are not Python floats.
class Number : public py::object {
 public:
  PYBIND11_OBJECT_DEFAULT(Number, py::object, is_number)
};

}  // namespace
}  // namespace intaglio::python

template <>
struct pybind11::detail::handle_type_name<intaglio::python::Number> {
  static constexpr auto name = const_name("typing.SupportsFloat | typing.SupportsIndex");
};

namespace intaglio::python {
namespace {

std::string text(double value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

void bind_window(py::module_& module) {
  py::class_<Window>(module, "Window",
                     "A part of a run: step i of N is inside when start <= i / N < end.")
      .def(py::init([](double start, double end) { return Window{start, end}; }),
           py::arg("start") = 0.0, py::arg("end") = 1.0)
      .def(py::init([](std::pair<double, double> both) { return Window{both.first, both.second}; }),
           py::arg("window"))
      .def_readwrite("start", &Window::start)
      .def_readwrite("end", &Window::end)
      .def("contains", &Window::contains, py::arg("step"), py::arg("steps"))
      .def("__repr__",
           [](const Window& w) { return "Window(" + text(w.start) + ", " + text(w.end) + ")"; });
  py::implicitly_convertible<py::sequence, Window>();
}

void bind_ramp(py::module_& module) {
  py::class_<Ramp>(
      module, "Ramp",
      "A value that goes linearly from the first step to the last, a constant when both are equal, "
      "or a value for each step.")
      .def(py::init([](const Number& value) { return Ramp(value.cast<double>()); }),
           py::arg("value"))
      .def(py::init<double, double>(), py::arg("first"), py::arg("last"))
      .def(py::init([](std::vector<double> values) {
             if (values.empty()) throw py::value_error("no value");
             if (values.size() == 2) return Ramp(values.front(), values.back());
             return Ramp(std::move(values));
           }),
           py::arg("values"), "Two values are a ramp, any other number is one for each step.")
      .def_readwrite("first", &Ramp::first)
      .def_readwrite("last", &Ramp::last)
      .def_readonly("each", &Ramp::each, "the value of each step; empty for a ramp")
      .def("at", &Ramp::at, py::arg("step"), py::arg("steps"))
      .def("__repr__", [](const Ramp& r) {
        if (!r.each.empty()) return "Ramp(" + py::repr(py::cast(r.each)).cast<std::string>() + ")";
        return "Ramp(" + text(r.first) + (r.first == r.last ? ")" : ", " + text(r.last) + ")");
      });
  py::implicitly_convertible<Number, Ramp>();
  py::implicitly_convertible<py::sequence, Ramp>();
}

void bind_weights(py::module_& module) {
  py::class_<StepWeights>(module, "StepWeights",
                          "What one step runs. A branch whose weight is zero does not run.")
      .def(py::init([](float lambda, float w, float ma_keep, bool reuse_unconditional,
                       bool reuse_degraded, bool skip) {
             return StepWeights{.lambda = lambda,
                                .w = w,
                                .ma_keep = ma_keep,
                                .reuse_unconditional = reuse_unconditional,
                                .reuse_degraded = reuse_degraded,
                                .skip = skip};
           }),
           py::arg("lambda_") = 0.0F, py::arg("w") = 0.0F, py::arg("ma_keep") = 0.0F, py::kw_only(),
           py::arg("reuse_unconditional") = false, py::arg("reuse_degraded") = false,
           py::arg("skip") = false)
      .def_readwrite("lambda_", &StepWeights::lambda)
      .def_readwrite("w", &StepWeights::w)
      .def_readwrite("ma_keep", &StepWeights::ma_keep)
      .def_property_readonly("unconditional", &StepWeights::unconditional)
      .def_property_readonly("degraded", &StepWeights::degraded)
      .def_readwrite("reuse_unconditional", &StepWeights::reuse_unconditional,
                     "whether the branch's difference from D_c comes from earlier steps")
      .def_readwrite("reuse_degraded", &StepWeights::reuse_degraded)
      .def_readwrite("skip", &StepWeights::skip, "whether no branch runs")
      .def_property_readonly("runs_unconditional", &StepWeights::runs_unconditional)
      .def_property_readonly("runs_degraded", &StepWeights::runs_degraded)
      .def("__repr__", [](const py::object& self) {
        return py::str(
                   "StepWeights(lambda_={0.lambda_}, w={0.w}, ma_keep={0.ma_keep}, "
                   "reuse_unconditional={0.reuse_unconditional}, "
                   "reuse_degraded={0.reuse_degraded}, skip={0.skip})")
            .format(self);
      });
}

void check_lists(const Guidance& guidance, int steps) {
  if (const auto problem = list_problem(guidance, steps)) throw_problem(*problem);
}

void bind_functions(py::module_& module) {
  module.def(
      "weights_at",
      [](const Guidance& guidance, int step, int steps) {
        check_lists(guidance, steps);
        return weights_at(guidance, step, steps);
      },
      py::arg("guidance"), py::arg("step"), py::arg("steps"),
      "Return the weights of one step by itself, without reuse and skipping. Raises UsageError for "
      "a list that does not have a value for each step.");
  module.def(
      "step_weights",
      [](const Guidance& guidance, int steps) {
        check_lists(guidance, steps);
        return step_weights(guidance, steps);
      },
      py::arg("guidance"), py::arg("steps"),
      "Return the weights of each step of a run, which steps reuse a branch's difference, and "
      "which are skipped. Raises UsageError as weights_at does.");
  module.def("check_guidance", &check_guidance, py::arg("guidance"),
             "Raise UsageError for a window that is outside 0..1 or empty, for ma_keep below 0, "
             "for an interval that grows or is below 1, a tolerance that is not positive, "
             "and values that are not finite.");
}

}  // namespace

void bind_guidance(py::module_& module) {
  bind_window(module);
  bind_ramp(module);
  py::class_<Guidance>(module, "Guidance",
                       "D = D_c + lambda (D_c - D_0) + w (D_c - D_m), arXiv 2510.11538.")
      .def(py::init([](Ramp cfg_scale, Window cfg_window, Ramp dg_scale, Window dg_window,
                       Ramp ma_keep, Ramp reuse_interval, Window reuse_window, Ramp skip_interval,
                       Window skip_window, std::vector<int> skip_steps, double skip_tolerance) {
             return Guidance{.cfg_scale = cfg_scale,
                             .cfg_window = cfg_window,
                             .dg_scale = dg_scale,
                             .dg_window = dg_window,
                             .ma_keep = ma_keep,
                             .reuse_interval = reuse_interval,
                             .reuse_window = reuse_window,
                             .skip_interval = skip_interval,
                             .skip_window = skip_window,
                             .skip_steps = std::move(skip_steps),
                             .skip_tolerance = skip_tolerance};
           }),
           py::kw_only(), py::arg("cfg_scale") = Ramp(1.0), py::arg("cfg_window") = Window{},
           py::arg("dg_scale") = Ramp(0.0), py::arg("dg_window") = Window{},
           py::arg("ma_keep") = Ramp(0.0), py::arg("reuse_interval") = Ramp(1.0),
           py::arg("reuse_window") = Window{}, py::arg("skip_interval") = Ramp(1.0),
           py::arg("skip_window") = Window{}, py::arg("skip_steps") = std::vector<int>{},
           py::arg("skip_tolerance") = Guidance{}.skip_tolerance)
      .def_readwrite("cfg_scale", &Guidance::cfg_scale,
                     "1 + lambda; 1 needs no unconditional branch")
      .def_readwrite("cfg_window", &Guidance::cfg_window)
      .def_readwrite("dg_scale", &Guidance::dg_scale, "w; 0 needs no degraded branch")
      .def_readwrite("dg_window", &Guidance::dg_window)
      .def_readwrite("ma_keep", &Guidance::ma_keep,
                     "1 leaves massive channels alone, 0 suppresses them")
      .def_readwrite("reuse_interval", &Guidance::reuse_interval,
                     "the number of steps from one run of D_0 and D_m to the next inside "
                     "reuse_window")
      .def_readwrite("reuse_window", &Guidance::reuse_window)
      .def_readwrite("skip_interval", &Guidance::skip_interval,
                     "the number of steps from one evaluation of the model to the next inside "
                     "skip_window")
      .def_readwrite("skip_window", &Guidance::skip_window)
      .def_readwrite("skip_steps", &Guidance::skip_steps,
                     "the steps that are skipped, instead of those by interval and window")
      .def_readwrite("skip_tolerance", &Guidance::skip_tolerance)
      .def("__repr__", [](const py::object& self) {
        return py::str(
                   "Guidance(cfg_scale={0.cfg_scale}, cfg_window={0.cfg_window}, "
                   "dg_scale={0.dg_scale}, "
                   "dg_window={0.dg_window}, ma_keep={0.ma_keep}, "
                   "reuse_interval={0.reuse_interval}, reuse_window={0.reuse_window}, "
                   "skip_interval={0.skip_interval}, skip_window={0.skip_window}, "
                   "skip_steps={0.skip_steps}, skip_tolerance={0.skip_tolerance})")
            .format(self);
      });
  bind_weights(module);
  bind_functions(module);
}

}  // namespace intaglio::python
