#include "bindings.h"
#include "gil.h"

PYBIND11_MODULE(_core, module) {
  using namespace intaglio::python;
  watch_interpreter();
  module.doc() = "The C++ library, name by name; `intaglio.Pipeline` is the front end.";
  module.attr("__version__") = INTAGLIO_VERSION;
  bind_error(module);
  bind_tensor(module);
  bind_rng(module);
  bind_image(module);
  bind_tokenizer(module);
  bind_sampling(module);
  bind_guidance(module);
  bind_bundle(module);
  bind_backend(module);
  bind_embedding(module);
  bind_options(module);
  bind_memory_plan(module);
  bind_pipeline(module);
  bind_batch(module);
  bind_command(module);
}
