#include "bindings.h"
#include "casters.h"
#include "intaglio/bundle.h"

namespace intaglio::python {
namespace {

void bind_graph(py::module_& module) {
  py::class_<GraphTensor>(module, "GraphTensor", "An input or output of a graph, by its role.")
      .def_readonly("name", &GraphTensor::name)
      .def_property_readonly("role",
                             [](const GraphTensor& tensor) { return to_string(tensor.role); })
      .def_property_readonly("dtype",
                             [](const GraphTensor& tensor) { return name_of(tensor.dtype); })
      .def_readonly("axes", &GraphTensor::axes, "sizes, and the names of dynamic axes");
  py::class_<Graph>(module, "Graph", "An ONNX graph of the bundle.")
      .def_readonly("path", &Graph::path, "relative to the bundle's folder")
      .def_readonly("cpu", &Graph::cpu, "the same for ONNX Runtime on the CPU, or None")
      .def_readonly("inputs", &Graph::inputs)
      .def_readonly("outputs", &Graph::outputs);
}

void bind_prompt(py::module_& module) {
  py::class_<TextEncoder>(module, "TextEncoder", "A text encoder with its tokenizer.")
      .def_readonly("graph", &TextEncoder::graph)
      .def_readonly("tokenizer", &TextEncoder::tokenizer,
                    "path of the tokenizer's tables, relative to the bundle's folder")
      .def_readonly("max_length", &TextEncoder::max_length);
  py::class_<TextSegment>(module, "TextSegment",
                          "Encoders whose hidden states are joined along channels. A segment "
                          "without encoders is zeros.")
      .def_readonly("encoders", &TextSegment::encoders)
      .def_readonly("length", &TextSegment::length);
  py::class_<Prompt>(module, "Prompt",
                     "How the encoders' outputs become the transformer's text and pooled inputs.")
      .def_readonly("max_sequence_length", &Prompt::max_sequence_length)
      .def_readonly("encoders", &Prompt::encoders)
      .def_readonly("text", &Prompt::text)
      .def_readonly("text_width", &Prompt::text_width)
      .def_readonly("pooled", &Prompt::pooled)
      .def_readonly("text_mask", &Prompt::text_mask,
                    "the encoder whose tokens the transformer's text_mask marks, or empty")
      .def_property_readonly("text_length", &Prompt::text_length);
}

void bind_parts(py::module_& module) {
  py::class_<Classes>(module, "Classes", "The classes of a model that is drawn by class.")
      .def_readonly("count", &Classes::count)
      .def_readonly("null", &Classes::null, "the class of the unconditional branch")
      .def("__repr__", [](const py::object& self) {
        return py::str("Classes(count={0.count}, null={0.null})").format(self);
      });
  py::class_<MassiveActivations>(module, "MassiveActivations",
                                 "Where the op is and what it suppresses by default.")
      .def_readonly("block", &MassiveActivations::block, "m: the op comes after this block")
      .def_readonly("channels", &MassiveActivations::channels)
      .def_readonly("ref", &MassiveActivations::ref, "what each channel goes to; if empty, 0")
      .def_readonly("ratio", &MassiveActivations::ratio, "mean |z| over the median channel's")
      .def_readonly("found_by", &MassiveActivations::found_by)
      .def_readonly("massive", &MassiveActivations::massive,
                    "whether they meet the definition, or are merely the largest")
      .def("__repr__", [](const py::object& self) {
        return py::str(
                   "MassiveActivations(block={0.block}, channels={0.channels}, "
                   "found_by={0.found_by!r}, massive={0.massive})")
            .format(self);
      });
  py::class_<Latent>(module, "Latent", "The layout and the scaling of the latents.")
      .def_readonly("channels", &Latent::channels, "unpacked")
      .def_readonly("vae_scale_factor", &Latent::vae_scale_factor,
                    "pixels per latent cell along one side")
      .def_readonly("scaling_factor", &Latent::scaling_factor)
      .def_readonly("shift_factor", &Latent::shift_factor)
      .def_readonly("max_height", &Latent::max_height, "pixels")
      .def_readonly("max_width", &Latent::max_width, "pixels")
      .def_readonly("packed", &Latent::packed, "latents are [N, tokens, channels * patch_size^2]")
      .def_readonly("fixed_size", &Latent::fixed_size, "max_height x max_width only");
  py::class_<References>(module, "References",
                         "Pictures that a run may take beside the prompt, as generate(image=...).")
      .def_readonly("most", &References::most, "of these pictures in one run")
      .def_readonly("sizes", &References::sizes,
                    "(width, height) in pixels, to the nearest of which a picture is scaled; if "
                    "empty, it is scaled down to max_area and cut")
      .def_readonly("max_area", &References::max_area, "pixels; 0 if there is no limit")
      .def_readonly("min_side", &References::min_side, "pixels; 0 if there is no limit")
      .def_readonly("max_aspect", &References::max_aspect, "0 if there is no limit")
      .def_readonly("only", &References::only,
                    "whether pictures are references only, and no run starts from one");
  py::class_<Defaults>(module, "Defaults", "What generate() uses for options that are not given.")
      .def_readonly("steps", &Defaults::steps)
      .def_readonly("guidance", &Defaults::guidance)
      .def_readonly("height", &Defaults::height, "pixels")
      .def_readonly("width", &Defaults::width, "pixels")
      .def_readonly("distilled_guidance", &Defaults::distilled_guidance)
      .def("__repr__", [](const py::object& self) {
        return py::str(
                   "Defaults(steps={0.steps}, height={0.height}, width={0.width}, "
                   "guidance={0.guidance})")
            .format(self);
      });
}

py::object refuse_to_pickle(const Bundle&) {
  throw py::type_error(
      "a Bundle has open files and cannot be pickled or copied: open it in the worker");
}

}  // namespace

void bind_bundle(py::module_& module) {
  bind_graph(module);
  bind_prompt(module);
  bind_parts(module);
  py::class_<Bundle>(module, "Bundle",
                     "The folder that `intaglio export` writes and the runtime reads.")
      .def_static(
          "open", &Bundle::open, py::arg("folder"), py::call_guard<ReleasedGil>(),
          "Read bundle.json and check it, and the size and SHA-256 of every file that it lists.\n\n"
          "Raises InputError, naming the file, if one is missing, truncated, tampered with or "
          "outside the folder, or if the schema is newer than this version.")
      .def_readonly("folder", &Bundle::folder)
      .def_readonly("name", &Bundle::name)
      .def_readonly("family", &Bundle::family)
      .def_readonly("source", &Bundle::source)
      .def_readonly("license", &Bundle::license)
      .def_property_readonly(
          "layout", [](const Bundle& bundle) { return name_of(bundle.layout); }, "forked or dual")
      .def_property_readonly("observed", &Bundle::observed,
                             "whether it was exported with --observe, so that a step callback "
                             "can read hidden_states() and gate()")
      .def_readonly("dtype", &Bundle::dtype, "of matmuls and attention")
      .def_property_readonly(
          "prediction_type", [](const Bundle& bundle) { return name_of(bundle.prediction_type); },
          "velocity or epsilon")
      .def_readonly("producer", &Bundle::producer, "versions of what wrote the bundle")
      .def_readonly("transformer_graphs", &Bundle::transformer_graphs)
      .def_readonly("blocks", &Bundle::blocks)
      .def_readonly("patch_size", &Bundle::patch_size, "latent cells")
      .def_readonly("hidden_size", &Bundle::hidden_size, "channels of the image stream")
      .def_readonly("channels", &Bundle::hidden_size,
                    "the old name of hidden_size, kept for one version")
      .def_property_readonly("size_multiple", &Bundle::size_multiple,
                             "height and width have to be multiples of this many pixels")
      .def("check_size", &Bundle::check_size, py::arg("height"), py::arg("width"),
           "Return what keeps the model from drawing pictures of that size: a problem with height, "
           "with width, with each, or an empty list.")
      .def_readonly("massive_activations", &Bundle::massive_activations)
      .def_readonly("latent", &Bundle::latent)
      .def_readonly("scheduler", &Bundle::scheduler)
      .def_readonly("max_abs", &Bundle::max_abs,
                    "the largest |z| after each block on the calibration prompts; empty if not "
                    "measured")
      .def_readonly("prompt", &Bundle::prompt, "None for a bundle that is drawn by class")
      .def_readonly("classes", &Bundle::classes, "None for a bundle that is drawn by prompt")
      .def_readonly("vae_decoder", &Bundle::vae_decoder)
      .def_readonly("vae_encoder", &Bundle::vae_encoder)
      .def_readonly("references", &Bundle::references, "None for a model that takes none")
      .def_readonly("defaults", &Bundle::defaults)
      .def_readonly("file_bytes", &Bundle::file_bytes)
      .def("__reduce__", &refuse_to_pickle)
      .def("__repr__", [](const py::object& self) {
        return py::str(
                   "<Bundle {0.name}: {0.family}, {0.layout}, {0.dtype}, {0.blocks} blocks of "
                   "{0.hidden_size} channels>")
            .format(self);
      });
}

}  // namespace intaglio::python
