#include <algorithm>

#include "bindings.h"
#include "casters.h"
#include "intaglio/error.h"
#include "intaglio/sampling.h"

namespace intaglio::python {
namespace {

using PyDenoiser = std::function<py::object(const Tensor& x, const StepPoint& point)>;
using PyOnStep = std::function<py::object(const StepPoint& point, const Tensor& x)>;

Tensor copy_of(std::span<const float> values, const Shape& shape) {
  Tensor tensor(shape, DType::float32);
  std::ranges::copy(values, tensor.floats().begin());
  return tensor;
}

Tensor sample(Sampler sampler, const PyDenoiser& denoise, const Tensor& x, const Schedule& schedule,
              const std::optional<PyOnStep>& on_step) {
  require_float32(x, "x");
  if (schedule.sigmas.size() != schedule.timesteps.size() + 1) {
    throw UsageError("a schedule of " + std::to_string(schedule.timesteps.size()) +
                     " timesteps needs one sigma more");
  }
  Tensor result = x.clone();
  // Copies, so that what Python keeps stays what it was.
  const Denoiser run = [&](std::span<const float> now, const StepPoint& point,
                           std::span<float> denoised) {
    const Tensor predicted = tensor_from(denoise(copy_of(now, result.shape()), point));
    require_float32(predicted, "the denoiser's result");
    if (predicted.shape() != result.shape()) {
      throw UsageError("the denoiser gave shape " + to_string(predicted.shape()) + " for " +
                       to_string(result.shape()));
    }
    std::ranges::copy(predicted.floats(), denoised.begin());
  };
  const OnStep report = [&](const StepPoint& point, std::span<const float> now) {
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!on_step) return true;
    const py::object answer = (*on_step)(point, copy_of(now, result.shape()));
    return answer.is_none() || py::bool_(answer);
  };
  sampler(run, result.floats(), schedule, report);
  return result;
}

void bind_sampler(py::module_& module, const char* name, Sampler sampler, const char* doc) {
  module.def(
      name,
      [sampler](const PyDenoiser& denoise, const Tensor& x, const Schedule& schedule,
                const std::optional<PyOnStep>& on_step) {
        return sample(sampler, denoise, x, schedule, on_step);
      },
      py::arg("denoise"), py::arg("x"), py::arg("schedule"), py::arg("on_step") = py::none(), doc);
}

void bind_schedule(py::module_& module) {
  py::class_<Schedule>(module, "Schedule", "Noise levels of a run, largest first.")
      .def(py::init([](std::vector<float> sigmas, std::vector<float> timesteps) {
             return Schedule{std::move(sigmas), std::move(timesteps)};
           }),
           py::arg("sigmas"), py::arg("timesteps"))
      .def_readonly("sigmas", &Schedule::sigmas, "N + 1 values, the last one 0")
      .def_readonly("timesteps", &Schedule::timesteps,
                    "N values, in the unit the model was trained on (sigma * 1000)")
      .def_property_readonly("steps", &Schedule::steps)
      .def("last", &Schedule::last, py::arg("count"), "The last `count` steps (image-to-image).")
      .def("__repr__", [](const Schedule& schedule) {
        return "Schedule(" + std::to_string(schedule.steps()) + " steps)";
      });
}

#define FIELD(name) def_readwrite(#name, &SchedulerConfig::name)

void bind_config(py::module_& module) {
  py::class_<SchedulerConfig>(
      module, "SchedulerConfig",
      "Parameters of diffusers' flow-matching schedulers, by their names there.")
      .def(py::init([](const py::kwargs& values) {
        py::object self = py::cast(SchedulerConfig{});
        for (const auto& [name, value] : values) {
          if (!py::hasattr(self, name)) {
            throw UsageError("SchedulerConfig has no parameter " +
                             py::str(name).cast<std::string>());
          }
          py::setattr(self, name, value);
        }
        return self.cast<SchedulerConfig>();
      }))
      .FIELD(type)
      .FIELD(num_train_timesteps)
      .FIELD(shift)
      .FIELD(use_dynamic_shifting)
      .FIELD(base_shift)
      .FIELD(max_shift)
      .FIELD(base_image_seq_len)
      .FIELD(max_image_seq_len)
      .FIELD(time_shift_type)
      .FIELD(shift_terminal);
}

#undef FIELD

}  // namespace

void bind_sampling(py::module_& module) {
  bind_config(module);
  bind_schedule(module);
  py::class_<StepPoint>(
      module, "StepPoint",
      "Where a sampler stands: `step` of `steps` (Heun's two evaluations share it).")
      .def_readonly("step", &StepPoint::step)
      .def_readonly("steps", &StepPoint::steps)
      .def_readonly("sigma", &StepPoint::sigma)
      .def_readonly("timestep", &StepPoint::timestep);
  module.def("scheduler_type", &scheduler_type, py::arg("name"),
             "diffusers' class for euler, heun or dpmpp-2m. Raises UsageError listing them.");
  module.def("make_schedule", &make_schedule, py::arg("config"), py::arg("steps"),
             py::arg("image_seq_len") = 0,
             "diffusers' set_timesteps(num_inference_steps=steps); `image_seq_len` (latent "
             "patches) matters for dynamic\n"
             "shifting only. Raises UsageError for steps < 1 and for a type it does not know.");
  bind_sampler(
      module, "sample_euler", &sample_euler,
      "Euler's method on the probability flow, arXiv 2206.00364 algorithm 1 without churn.\n\n"
      "denoise(x, point) gives the clean data that it predicts, of x's shape, float32; x is the "
      "noise at\n"
      "schedule.sigmas[0]. on_step(point, x) sees x after each step; returning False stops. "
      "Returns x.");
  bind_sampler(module, "sample_heun", &sample_heun,
               "Heun's second-order method, arXiv 2206.00364 algorithm 1; the last step is "
               "Euler's. Otherwise as sample_euler.");
  bind_sampler(module, "sample_dpmpp_2m", &sample_dpmpp_2m,
               "DPM-Solver++(2M), arXiv 2211.01095 algorithm 2, with lambda = log((1 - sigma) / "
               "sigma). Otherwise as sample_euler.");
}

}  // namespace intaglio::python
