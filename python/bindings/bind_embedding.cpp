#include "bindings.h"
#include "casters.h"
#include "intaglio/embedding.h"
#include "intaglio/error.h"

namespace intaglio::python {
namespace {

using Part = Tensor TextConditioning::*;

py::object show(const Tensor& tensor) { return tensor.defined() ? to_numpy(tensor) : py::none(); }

auto positive(Part part) {
  return [part](const PromptEmbeddings& embeddings) { return show(embeddings.positive.*part); };
}

auto negative(Part part) {
  return [part](const PromptEmbeddings& embeddings) -> py::object {
    return embeddings.negative ? show(*embeddings.negative.*part) : py::none();
  };
}

// Tokenizers make masks of int64 or of bool, which a Tensor cannot hold.
py::object with_float_marks(const py::object& mask) {
  const py::module_ numpy = py::module_::import("numpy");
  py::object array = mask;
  try {
    if (!py::isinstance(mask, numpy.attr("ndarray"))) array = numpy.attr("from_dlpack")(mask);
  } catch (py::error_already_set&) {
    return mask;  // tensor_from() refuses it
  }
  const auto type = py::str(array.attr("dtype")).cast<std::string>();
  if (type != "int64" && type != "bool") return mask;
  return array.attr("astype")("float32", py::arg("order") = "C");
}

Tensor floats_from(const py::object& array, const std::string& name) {
  if (array.is_none()) return {};
  Tensor tensor = tensor_from(array);
  require_float32(tensor, name.c_str());
  return tensor;
}

TextConditioning conditioning_from(const std::string& prefix, const py::object& text,
                                   const py::object& mask, const py::object& pooled) {
  return {
      floats_from(text, prefix + "prompt_embeds"),
      floats_from(mask.is_none() ? mask : with_float_marks(mask), prefix + "prompt_attention_mask"),
      floats_from(pooled, prefix + "pooled_prompt_embeds")};
}

std::optional<TextConditioning> negative_from(const py::object& text, const py::object& mask,
                                              const py::object& pooled) {
  if (!text.is_none()) return conditioning_from("negative_", text, mask, pooled);
  if (mask.is_none() && pooled.is_none()) return std::nullopt;
  throw InputError(
      "a part of the negative prompt is given without negative_prompt_embeds: give all of it, or "
      "none");
}

PromptEmbeddings make_embeddings(const py::object& text, const py::object& mask,
                                 const py::object& pooled, const py::object& negative_text,
                                 const py::object& negative_mask,
                                 const py::object& negative_pooled) {
  PromptEmbeddings embeddings;
  embeddings.positive = conditioning_from("", text, mask, pooled);
  embeddings.negative = negative_from(negative_text, negative_mask, negative_pooled);
  return embeddings;
}

// What pickle stores: the arguments of make_embeddings, and the notes.
py::tuple state_of(const PromptEmbeddings& embeddings) {
  const TextConditioning& first = embeddings.positive;
  const TextConditioning second = embeddings.negative.value_or(TextConditioning{});
  return py::make_tuple(show(first.text), show(first.text_mask), show(first.pooled),
                        show(second.text), show(second.text_mask), show(second.pooled),
                        embeddings.notes);
}

PromptEmbeddings embeddings_from(const py::tuple& state) {
  PromptEmbeddings embeddings =
      make_embeddings(state[0], state[1], state[2], state[3], state[4], state[5]);
  embeddings.notes = state[6].cast<std::vector<std::string>>();
  return embeddings;
}

}  // namespace

void bind_embedding(py::module_& module) {
  py::class_<PromptEmbeddings> type(
      module, "PromptEmbeddings",
      "What the text encoders make of a prompt, under the names of diffusers' arguments.\n\n"
      "float32 arrays: prompt_embeds [1, S, D], prompt_attention_mask [1, S] (1 for tokens, 0 for "
      "padding)\nand pooled_prompt_embeds [1, P], and those of the negative prompt; None where the "
      "model has no such input.");
  type.def(py::init(&make_embeddings), py::arg("prompt_embeds"), py::kw_only(),
           py::arg("prompt_attention_mask") = py::none(),
           py::arg("pooled_prompt_embeds") = py::none(),
           py::arg("negative_prompt_embeds") = py::none(),
           py::arg("negative_prompt_attention_mask") = py::none(),
           py::arg("negative_pooled_prompt_embeds") = py::none(),
           "Share the memory of the given arrays: anything with __dlpack__, of float32 in C order. "
           "Masks "
           "of int64\nor bool are converted.");
  type.def_static("load", &load_prompt_embeds, py::arg("path"), py::call_guard<ReleasedGil>(),
                  "Read safetensors of F32, F16, BF16, I64 or BOOL under these names, or "
                  "prompt_embeds_mask for the\nmask, as diffusers calls that of Qwen-Image. Raises "
                  "InputError naming the file.");
  type.def(
      "save",
      [](const PromptEmbeddings& embeddings, const std::filesystem::path& path) {
        const ReleasedGil release;
        save_prompt_embeds(path, embeddings);
      },
      py::arg("path"), "Write safetensors of F32 under a temporary name, then rename it.");
  const auto add = [&](const char* name, auto getter) { type.def_property_readonly(name, getter); };
  add("prompt_embeds", positive(&TextConditioning::text));
  add("prompt_attention_mask", positive(&TextConditioning::text_mask));
  add("pooled_prompt_embeds", positive(&TextConditioning::pooled));
  add("negative_prompt_embeds", negative(&TextConditioning::text));
  add("negative_prompt_attention_mask", negative(&TextConditioning::text_mask));
  add("negative_pooled_prompt_embeds", negative(&TextConditioning::pooled));
  type.def_readonly("notes", &PromptEmbeddings::notes, "prompts that were cut");
  type.def(py::pickle(&state_of, &embeddings_from));
  module.attr("PromptEmbeds") = type;  // the old name, kept for one version
}

}  // namespace intaglio::python
