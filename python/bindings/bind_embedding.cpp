#include "bindings.h"
#include "casters.h"
#include "intaglio/embedding.h"

namespace intaglio::python {
namespace {

using Part = Tensor PromptEmbedding::*;

py::object show(const Tensor& tensor) { return tensor.defined() ? to_numpy(tensor) : py::none(); }

auto positive(Part part) {
  return [part](const PromptEmbeds& embeds) { return show(embeds.positive.*part); };
}

auto negative(Part part) {
  return [part](const PromptEmbeds& embeds) -> py::object {
    return embeds.negative ? show(*embeds.negative.*part) : py::none();
  };
}

PromptEmbedding embedding_from(const py::object& text, const py::object& mask,
                               const py::object& pooled) {
  const auto convert = [](const py::object& array) {
    return array.is_none() ? Tensor() : tensor_from(array);
  };
  return {convert(text), convert(mask), convert(pooled)};
}

}  // namespace

void bind_embedding(py::module_& module) {
  py::class_<PromptEmbeds> type(
      module, "PromptEmbeds",
      "What the text encoders make of a prompt, under the names of diffusers' arguments.\n\n"
      "float32 arrays: prompt_embeds [1, S, D], prompt_attention_mask [1, S] (1 for tokens, 0 for "
      "padding)\nand pooled_prompt_embeds [1, P], and those of the negative prompt; None where the "
      "model has no such input.");
  type.def(py::init([](const py::object& text, const py::object& mask, const py::object& pooled,
                       const py::object& negative_text, const py::object& negative_mask,
                       const py::object& negative_pooled) {
             PromptEmbeds embeds;
             embeds.positive = embedding_from(text, mask, pooled);
             if (!negative_text.is_none())
               embeds.negative = embedding_from(negative_text, negative_mask, negative_pooled);
             return embeds;
           }),
           py::arg("prompt_embeds"), py::kw_only(), py::arg("prompt_attention_mask") = py::none(),
           py::arg("pooled_prompt_embeds") = py::none(),
           py::arg("negative_prompt_embeds") = py::none(),
           py::arg("negative_prompt_attention_mask") = py::none(),
           py::arg("negative_pooled_prompt_embeds") = py::none(),
           "Over the same memory: anything with __dlpack__, in C order.");
  type.def_static("load", &load_prompt_embeds, py::arg("path"),
                  py::call_guard<py::gil_scoped_release>(),
                  "Reads safetensors of F32, F16 or BF16 under these names. Raises InputError "
                  "naming the file.");
  type.def(
      "save",
      [](const PromptEmbeds& embeds, const std::filesystem::path& path) {
        const py::gil_scoped_release release;
        save_prompt_embeds(path, embeds);
      },
      py::arg("path"), "Writes safetensors of F32, under a temporary name, then renamed.");
  const auto add = [&](const char* name, auto getter) { type.def_property_readonly(name, getter); };
  add("prompt_embeds", positive(&PromptEmbedding::text));
  add("prompt_attention_mask", positive(&PromptEmbedding::text_mask));
  add("pooled_prompt_embeds", positive(&PromptEmbedding::pooled));
  add("negative_prompt_embeds", negative(&PromptEmbedding::text));
  add("negative_prompt_attention_mask", negative(&PromptEmbedding::text_mask));
  add("negative_pooled_prompt_embeds", negative(&PromptEmbedding::pooled));
  type.def_readonly("notes", &PromptEmbeds::notes, "prompts that were cut");
}

}  // namespace intaglio::python
