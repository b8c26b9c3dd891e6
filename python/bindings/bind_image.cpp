#include "bindings.h"
#include "call_python.h"
#include "casters.h"
#include "intaglio/error.h"
#include "intaglio/file.h"
#include "intaglio/image.h"

namespace intaglio::python {
namespace {

std::vector<Image> checked_to_images(const Tensor& tensor) {
  require_float32(tensor, "tensor");
  if (tensor.shape().size() != 4 || tensor.dim(1) != 3) {
    throw InputError("tensor must have shape [N, 3, H, W], not " + to_string(tensor.shape()));
  }
  return to_images(tensor);
}

}  // namespace

Image image_from(py::handle picture) {
  const py::object read = call_function("intaglio.pillow", "pixels_of", picture);
  if (py::isinstance<py::bytes>(read))
    return decode_png(static_cast<std::string>(read.cast<py::bytes>()), "the picture");
  const auto parts = read.cast<py::tuple>();
  const auto bytes = parts[2].cast<py::bytes>();
  const auto pixels = static_cast<std::string_view>(bytes);
  return {parts[0].cast<int>(), parts[1].cast<int>(), {pixels.begin(), pixels.end()}};
}

py::object to_pil(const Image& image) {
  const py::bytes pixels(reinterpret_cast<const char*>(image.pixels.data()), image.pixels.size());
  return call_function("intaglio.pillow", "image_of", image.width, image.height, pixels);
}

void bind_image(py::module_& module) {
  module.def(
      "to_images", &checked_to_images, py::arg("tensor"),
      "[N, 3, H, W] float32 in [-1, 1] to N images; rounds as diffusers' VaeImageProcessor does.");
  module.def("from_image", &from_image, py::arg("image"),
             "Convert an image to [1, 3, H, W] float32 in [-1, 1].");
  module.def(
      "write_png", &write_png, py::arg("path"), py::arg("image"), py::arg("text") = TextEntries{},
      py::call_guard<ReleasedGil>(),
      "`text` becomes the file's text chunks. Written under a temporary name, then renamed.");
  module.def(
      "write_file",
      [](const std::filesystem::path& path, const py::bytes& content) {
        const auto bytes = static_cast<std::string>(content);
        const ReleasedGil release;
        write_file(path, bytes);
      },
      py::arg("path"), py::arg("content"),
      "Write a file as write_png does. Raises InputError naming the file.");
  module.def("read_png", &read_png, py::arg("path"), py::call_guard<ReleasedGil>(),
             "Read any PNG as 8-bit RGB, turned as the orientation in its EXIF says. Transparent "
             "parts are drawn over black, and 16 bits are scaled to 8. Raises InputError naming "
             "the file.");
}

}  // namespace intaglio::python
