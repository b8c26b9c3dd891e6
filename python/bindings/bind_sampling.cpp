#include "bindings.h"
#include "casters.h"
#include "intaglio/error.h"
#include "intaglio/sampling.h"

namespace intaglio::python {
namespace {

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
  return {.sigmas = std::move(sigmas),
          .timesteps = std::move(timesteps),
          .alphas = std::move(*alphas),
          .end_sigmas = {},
          .end_alphas = {}};
}

void bind_schedule(py::module_& module) {
  py::class_<Schedule>(module, "Schedule", "Noise levels of a run, largest first.")
      .def(py::init(&make), py::arg("sigmas"), py::arg("timesteps"), py::arg("alphas") = py::none(),
           "Without alphas, take those of flow matching: 1 - sigma. Raises UsageError for lengths "
           "that do not fit.")
      .def_readonly("sigmas", &Schedule::sigmas,
                    "N + 1 values, the last one 0, or what set_alpha_to_one leaves")
      .def_readonly("timesteps", &Schedule::timesteps,
                    "N values, in the unit the model was trained on (0 to 1000)")
      .def_readonly("alphas", &Schedule::alphas, "N + 1 values: x = alpha * clean + sigma * noise")
      .def_readonly("end_sigmas", &Schedule::end_sigmas,
                    "where each step of DDIM ends; empty if each ends where the next one begins")
      .def_readonly("end_alphas", &Schedule::end_alphas)
      .def_property_readonly("steps", &Schedule::steps)
      .def("last", &Schedule::last, py::arg("count"),
           "Return the last `count` steps, for image-to-image.")
      .def("__repr__", [](const Schedule& schedule) {
        return "Schedule(" + std::to_string(schedule.steps()) + " steps)";
      });
}

#define FIELD(name) def_readwrite(#name, &SchedulerConfig::name)

void bind_config(py::module_& module) {
  py::class_<SchedulerConfig>(module, "SchedulerConfig",
                              "Parameters of diffusers' schedulers, by their names there. Only "
                              "prediction_type has values of its own: velocity or epsilon.")
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
      .FIELD(sde)
      .def_property(
          "prediction_type",
          [](const SchedulerConfig& config) { return name_of(config.prediction_type); },
          [](SchedulerConfig& config, const std::string& name) {
            config.prediction_type = prediction_type_from(name);
          },
          "velocity or epsilon")
      .FIELD(num_train_timesteps)
      .FIELD(shift)
      .FIELD(use_dynamic_shifting)
      .FIELD(base_shift)
      .FIELD(max_shift)
      .FIELD(base_image_seq_len)
      .FIELD(max_image_seq_len)
      .FIELD(time_shift_type)
      .FIELD(shift_terminal)
      .FIELD(spacing)
      .FIELD(linspace_sigmas)
      .FIELD(empirical_mu)
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
  module.def(
      "scheduler_type",
      [](const std::string& name, const std::string& prediction_type) {
        return scheduler_type(name, prediction_type_from(prediction_type));
      },
      py::arg("name"), py::arg("prediction_type"),
      "Return diffusers' class for euler, heun, dpmpp-2m, dpmpp-2m-sde, unipc, euler-ancestral, "
      "lcm "
      "or ddim. Raises UsageError,\nnaming the schedulers that fit a model of this prediction "
      "type.");
  module.def(
      "make_schedule", &make_schedule, py::arg("config"), py::arg("steps"),
      py::arg("image_seq_len") = 0,
      "Return what diffusers' set_timesteps(num_inference_steps=steps) makes. `image_seq_len`, the "
      "number of latent\npatches, matters for dynamic shifting only. Raises UsageError for steps < "
      "1, for more steps than the scheduler has\ntimesteps, and for a type that is unknown or does "
      "not fit the prediction type.");
}

}  // namespace intaglio::python
