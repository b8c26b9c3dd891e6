#include "bindings.h"
#include "casters.h"
#include "intaglio/error.h"
#include "intaglio/rng.h"

namespace intaglio::python {

void bind_rng(py::module_& module) {
  py::class_<Generator>(module, "Generator",
                        "Noise equal to torch.Generator(\"cpu\").manual_seed(seed)'s, to 1e-5.")
      .def(py::init<std::uint64_t>(), py::arg("seed"))
      .def(
          "randn",
          [](Generator& generator, const Shape& shape) {
            for (const std::int64_t size : shape) {
              if (size < 0)
                throw UsageError("a shape of " + to_string(shape) + " has a negative size");
            }
            Tensor noise(shape, DType::float32);
            generator.randn(noise.floats());
            return noise;
          },
          py::arg("shape"), "Return what torch.randn(shape, generator=self) gives in float32.");
  module.def(
      "draw_noise", &draw_noise, py::arg("shape"), py::arg("seeds"), py::call_guard<ReleasedGil>(),
      "Draw noise of `shape` = [N, ...] as diffusers does: one seed draws the whole batch, and N "
      "seeds draw one\n"
      "image each. Raises UsageError for another number of seeds.");
}

}  // namespace intaglio::python
