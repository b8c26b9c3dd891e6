#include <algorithm>

#include "bindings.h"
#include "casters.h"
#include "intaglio/error.h"
#include "intaglio/sampling.h"

namespace intaglio::python {
namespace {

using PyDenoiser = std::function<py::object(const Tensor& x, const StepPoint& point)>;
using Sampler = int (*)(const Denoiser&, std::span<float>, const Schedule&, const OnStep&);
using PyOnStep = std::function<py::object(const StepPoint& point, const Tensor& x)>;

Tensor copy_of(std::span<const float> values, const Shape& shape) {
  Tensor tensor(shape, DType::float32);
  std::ranges::copy(values, tensor.floats().begin());
  return tensor;
}

Tensor sample(Sampler sampler, const PyDenoiser& denoise, const Tensor& x, const Schedule& schedule,
              const std::optional<PyOnStep>& on_step) {
  require_float32(x, "x");
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

Schedule make(std::vector<float> sigmas, std::vector<float> timesteps,
              std::optional<std::vector<float>> alphas) {
  if (!alphas) {
    alphas.emplace();
    for (const float sigma : sigmas) alphas->push_back(1.0F - sigma);
  }
  if (sigmas.size() != timesteps.size() + 1 || alphas->size() != sigmas.size()) {
    throw UsageError("a schedule of " + std::to_string(timesteps.size()) +
                     " timesteps needs one sigma more, and as many alphas");
  }
  return {std::move(sigmas), std::move(timesteps), std::move(*alphas), {}, {}};
}

void bind_schedule(py::module_& module) {
  py::class_<Schedule>(module, "Schedule", "Noise levels of a run, largest first.")
      .def(py::init(&make), py::arg("sigmas"), py::arg("timesteps"), py::arg("alphas") = py::none(),
           "Without alphas: those of flow matching, 1 - sigma. Raises UsageError for lengths that "
           "do not fit.")
      .def_readonly("sigmas", &Schedule::sigmas,
                    "N + 1 values, the last one 0, or what set_alpha_to_one leaves")
      .def_readonly("timesteps", &Schedule::timesteps,
                    "N values, in the unit the model was trained on (0 to 1000)")
      .def_readonly("alphas", &Schedule::alphas, "N + 1 values: x = alpha * clean + sigma * noise")
      .def_readonly("end_sigmas", &Schedule::end_sigmas,
                    "where each step of sample_ddim ends; empty: where the next one begins")
      .def_readonly("end_alphas", &Schedule::end_alphas)
      .def_property_readonly("steps", &Schedule::steps)
      .def("last", &Schedule::last, py::arg("count"), "The last `count` steps (image-to-image).")
      .def("__repr__", [](const Schedule& schedule) {
        return "Schedule(" + std::to_string(schedule.steps()) + " steps)";
      });
}

#define FIELD(name) def_readwrite(#name, &SchedulerConfig::name)

void bind_config(py::module_& module) {
  py::class_<SchedulerConfig>(module, "SchedulerConfig",
                              "Parameters of diffusers' schedulers, by their names there, but for "
                              "prediction_type: velocity "
                              "or epsilon.")
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
      .FIELD(prediction_type)
      .FIELD(num_train_timesteps)
      .FIELD(shift)
      .FIELD(use_dynamic_shifting)
      .FIELD(base_shift)
      .FIELD(max_shift)
      .FIELD(base_image_seq_len)
      .FIELD(max_image_seq_len)
      .FIELD(time_shift_type)
      .FIELD(shift_terminal)
      .FIELD(linspace_sigmas)
      .FIELD(beta_start)
      .FIELD(beta_end)
      .FIELD(beta_schedule)
      .FIELD(timestep_spacing)
      .FIELD(steps_offset)
      .FIELD(set_alpha_to_one);
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
      .def_readonly("timestep", &StepPoint::timestep)
      .def_readonly("alpha", &StepPoint::alpha);
  module.def("scheduler_type", &scheduler_type, py::arg("name"), py::arg("prediction_type"),
             "diffusers' class for euler, heun, dpmpp-2m or ddim. Raises UsageError naming those "
             "that fit a model of this\n"
             "prediction type.");
  module.def(
      "make_schedule", &make_schedule, py::arg("config"), py::arg("steps"),
      py::arg("image_seq_len") = 0,
      "diffusers' set_timesteps(num_inference_steps=steps); `image_seq_len` (latent "
      "patches) matters for dynamic\n"
      "shifting only. Raises UsageError for steps < 1, for more steps than the scheduler has "
      "timesteps, and for a type it\n"
      "does not know or that does not fit the prediction type.");
  module.def(
      "to_denoised",
      [](const std::string& prediction_type, const Tensor& x, const StepPoint& point,
         const Tensor& prediction) {
        require_float32(x, "x");
        require_float32(prediction, "prediction");
        if (prediction.shape() != x.shape()) {
          throw UsageError("the prediction has shape " + to_string(prediction.shape()) + " for " +
                           to_string(x.shape()));
        }
        Tensor denoised = prediction.clone();
        to_denoised(prediction_type, x.floats(), point, denoised.floats());
        return denoised;
      },
      py::arg("prediction_type"), py::arg("x"), py::arg("point"), py::arg("prediction"),
      "The clean data that a model's output at `point` means: x - sigma * velocity, or (x - sigma "
      "* epsilon) / alpha.");
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
               "DPM-Solver++(2M), arXiv 2211.01095 algorithm 2, with lambda = log(alpha / sigma). "
               "Otherwise as sample_euler.");
  bind_sampler(module, "sample_ddim", &sample_ddim,
               "DDIM, arXiv 2010.02502 equation 12 with eta 0. Otherwise as sample_euler.");
}

}  // namespace intaglio::python
