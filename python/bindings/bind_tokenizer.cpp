#include "bindings.h"
#include "casters.h"
#include "intaglio/tokenizer.h"
#include "text.h"

namespace intaglio::python {

void bind_tokenizer(py::module_& module) {
  py::class_<Tokens>(module, "Tokens", "What a tokenizer made of a text.")
      .def_readonly("ids", &Tokens::ids, "Token ids, padded to the requested length.")
      .def_readonly("begin", &Tokens::begin,
                    "How many ids of padding there are on the left; 0 if it is on the right.")
      .def_readonly("used", &Tokens::used, "How many ids are not padding, special tokens included.")
      .def_readonly("truncated", &Tokens::truncated, "Whether a part of the text was cut.");
  py::class_<Tokenizer>(
      module, "Tokenizer",
      "Turns text into token ids, equal to those of transformers' fast tokenizers.")
      .def(
          "encode",
          [](const Tokenizer& tokenizer, const py::str& text, int length) {
            const std::string bytes = utf8_of(text);
            const ReleasedGil release;
            return tokenizer.encode(bytes, length);
          },
          py::arg("text"), py::arg("length"),
          "Return ids with the family's special tokens, truncated and padded to `length`, equal "
          "to\n"
          "tokenizer(text, padding=\"max_length\", max_length=length, "
          "truncation=True).input_ids.\n\n"
          "Raises InputError for lone surrogates.");
  module.def(
      "load_tokenizer", &load_tokenizer, py::arg("tables"), py::call_guard<ReleasedGil>(),
      "Read the tables that export wrote from tokenizer.json. Raises InputError naming the file.");
}

}  // namespace intaglio::python
