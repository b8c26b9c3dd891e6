#include "bindings.h"
#include "call_python.h"
#include "casters.h"
#include "intaglio/error.h"
#include "intaglio/pipeline.h"
#include "intaglio/validate.h"
#include "options.h"
#include "pickled.h"
#include "text.h"

namespace intaglio::python {
namespace {

// Takes the step's functions away when its callback returns: after that the run goes on, and what
// they point to changes or ends.
class StepGuard {
 public:
  explicit StepGuard(Step& step) : step_(step) {}
  StepGuard(const StepGuard&) = delete;
  StepGuard& operator=(const StepGuard&) = delete;
  ~StepGuard() {
    step_.latents = nullptr;
    step_.preview = nullptr;
    step_.hidden_states = nullptr;
    step_.gate = nullptr;
  }

 private:
  Step& step_;
};

std::vector<Image> preview(const Step& step) {
  if (!step.preview)
    throw UsageError("preview() works only inside the step callback that got this step");
  const ReleasedGil release;
  return step.preview();
}

Tensor latents(const Step& step) {
  if (!step.latents)
    throw UsageError("latents are there only inside the step callback that got this step");
  return step.latents();
}

Tensor observed(const Step& step, std::function<Tensor(int)> Step::* output, int block) {
  if (!(step.*output)) {
    throw UsageError(
        "hidden_states() and gate() work only inside the step callback that got this step");
  }
  const ReleasedGil release;
  return (step.*output)(block);
}

bool call(const py::object& on_step, const Step& step) {
  const HeldGil gil;
  // Ctrl-C only sets a flag while C++ runs; this raises KeyboardInterrupt from it.
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  if (on_step.is_none()) return true;
  py::object shown = py::cast(step, py::return_value_policy::copy);
  const StepGuard guard(shown.cast<Step&>());
  const py::object answer =
      call_python([&] { return PyObject_CallOneArg(on_step.ptr(), shown.ptr()); });
  return answer.is_none() || py::bool_(answer);
}

Generation generate(const Pipeline& pipeline, const py::object& on_step,
                    const py::kwargs& keywords) {
  const GenerateOptions options = options_from(keywords);
  const ReleasedGil release;
  return pipeline.generate(options, [&](const Step& step) { return call(on_step, step); });
}

void load(const Pipeline& pipeline) {
  const ReleasedGil release;
  pipeline.load([](int, int) {
    const HeldGil gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    return true;
  });
}

void bind_step(py::module_& module) {
  py::class_<Step>(module, "Step", "What a step callback sees of the run.")
      .def_readonly("step", &Step::step, "just done, from 0")
      .def_readonly("steps", &Step::steps)
      .def_readonly("sigma", &Step::sigma, "the step started from")
      .def_readonly("timestep", &Step::timestep,
                    "of the step's last evaluation of the model, in the scheduler's unit")
      .def_readonly("first_image", &Step::first_image,
                    "of the group of images that this step is of: with max_memory, a run may draw\n"
                    "its images in groups, and each has all steps")
      .def_readonly("group", &Step::group, "from 0")
      .def_readonly("groups", &Step::groups)
      .def_property_readonly(
          "latents", &latents,
          "The latents after the step: float32, laid out as Generation.latents. On the processor "
          "this "
          "is the run's own\nmemory, which the next step overwrites: copy what you keep. The next "
          "step starts from what you write into\nit. Works only during the callback.")
      .def("preview", &preview,
           "Return the current estimate of the clean images, decoded. Works only during the "
           "callback.")
      .def(
          "hidden_states",
          [](const Step& step, int block) { return observed(step, &Step::hidden_states, block); },
          py::arg("block"),
          "Return the image stream after a block at the step's last evaluation of the model: a\n"
          "copy, [rows, tokens, channels] float32. After block m it is taken before channels are\n"
          "suppressed. Rows are in the order D_0, D_c and, after block m in layout forked, D_m,\n"
          "without the rows of branches that did not run, and with images in order within each.\n"
          "Works only during the callback.\n\n"
          "Raises UsageError for a bundle that was not exported with --observe, and for a block\n"
          "that the transformer does not have.")
      .def(
          "gate", [](const Step& step, int block) { return observed(step, &Step::gate, block); },
          py::arg("block"),
          "Return the factor that a block's attention is multiplied by before it is added to the\n"
          "image stream: AdaLN's gate, a copy, [rows, channels] float32. The rows are those of\n"
          "hidden_states(), and it raises the same errors.")
      .def("__repr__", [](const py::object& self) {
        return py::str("<Step {} of {}, sigma {:.4f}>")
            .format(self.attr("step"), self.attr("steps"), self.attr("sigma"));
      });
}

void bind_generation(py::module_& module) {
  py::class_<Timings>(module, "Timings", "Seconds spent on each stage.")
      .def_readonly("text", &Timings::text)
      .def_readonly("denoise", &Timings::denoise)
      .def_readonly("network", &Timings::network,
                    "the part of denoise in the transformer's graphs; on a GPU only until they "
                    "have been given to it")
      .def_readonly("vae", &Timings::vae)
      .def_readonly("total", &Timings::total)
      .def(pickled<Timings>(&Timings::text, &Timings::denoise, &Timings::network, &Timings::vae,
                            &Timings::total))
      .def("__repr__", [](const py::object& self) {
        return py::str(
                   "Timings(text={0.text:.3f}, denoise={0.denoise:.3f}, "
                   "network={0.network:.3f}, vae={0.vae:.3f}, total={0.total:.3f})")
            .format(self);
      });
  py::class_<Generation>(module, "Generation", "What Pipeline.generate() returns.")
      .def_property_readonly("images",
                             [](const Generation& generation) { return generation.images; })
      .def_property_readonly("latents",
                             [](const Generation& generation) { return generation.latents; })
      .def_property_readonly("timings",
                             [](const Generation& generation) { return generation.timings; })
      .def_readonly("step_seconds", &Generation::step_seconds)
      .def_readonly("base_rows", &Generation::base_rows)
      .def_readonly("forked_rows", &Generation::forked_rows)
      .def_readonly("loop", &Generation::loop, "the allocations and copies of the denoising loop")
      .def_readonly("unconditional_steps", &Generation::unconditional_steps)
      .def_readonly("degraded_steps", &Generation::degraded_steps)
      .def_readonly("evaluations", &Generation::evaluations)
      .def_readonly("skipped_steps", &Generation::skipped_steps)
      .def_readonly("largest_distance", &Generation::largest_distance)
      .def_property_readonly(
          "notes", [](const Generation& generation) { return with_field_names(generation.notes); })
      .def_readonly("texts", &Generation::texts, "the text entries of each image's PNG");
}

}  // namespace

void bind_pipeline(py::module_& module) {
  bind_step(module);
  bind_generation(module);
  py::class_<Pipeline>(
      module, "Pipeline",
      "From a bundle and a prompt to images; `intaglio.Pipeline` is the typed front end.")
      .def_static(
          "open", &Pipeline::open, py::arg("bundle"),
          py::arg_v("backend", BackendOptions{}, "BackendOptions()"), py::call_guard<ReleasedGil>(),
          "Open a bundle. Raises InputError for the bundle and UnavailableError for the device.")
      .def_property_readonly("bundle", &Pipeline::bundle,
                             py::return_value_policy::reference_internal)
      .def_property_readonly(
          "backend", [](const Pipeline& pipeline) { return pipeline.backend().description(); },
          "a description for people of what it runs on")
      .def_property_readonly(
          "choice", [](const Pipeline& pipeline) { return pipeline.backend().choice; },
          "the device that was chosen, and why")
      .def_property_readonly(
          "placements", [](const Pipeline& pipeline) { return pipeline.backend().placements(); },
          "where the nodes of the graphs that have run did so; empty on the CPU")
      .def_property_readonly(
          "placement_notes",
          [](const Pipeline& pipeline) { return placement_notes(pipeline.backend()); },
          "a sentence for each graph of which another provider than the device's ran nodes")
      .def(
          "embed",
          [](const Pipeline& pipeline, const py::str& prompt,
             const std::optional<py::str>& negative_prompt) {
            const std::string text = utf8_of(prompt);
            std::optional<std::string> negative;
            if (negative_prompt) negative = utf8_of(*negative_prompt);
            const ReleasedGil release;
            return pipeline.embed(text, negative);
          },
          py::arg("prompt"), py::arg("negative_prompt") = py::none(),
          "Return what the text encoders make of the prompts. Raises UsageError for a bundle "
          "without "
          "text encoders.")
      .def(
          "load", &load,
          "Load the graphs that a run needs, which some devices compile for minutes. Ctrl-C raises "
          "KeyboardInterrupt between two of them.")
      .def("generate", &generate, py::arg("on_step") = py::none(),
           "Draw images. Takes the keywords that option_infos() lists, and image, mask, "
           "latents, ma_tokens and prompt_embeds.");
}

}  // namespace intaglio::python
