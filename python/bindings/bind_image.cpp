#include "bindings.h"
#include "casters.h"
#include "intaglio/error.h"
#include "intaglio/image.h"

namespace intaglio::python {
namespace {

py::module_ pil() { return py::module_::import("PIL.Image"); }

// Copies the pixels of a PIL image that is already RGB.
Image copy_pixels(const py::object& picture) {
  Image image;
  image.width = picture.attr("width").cast<int>();
  image.height = picture.attr("height").cast<int>();
  const auto bytes = picture.attr("tobytes")().cast<py::bytes>();
  const auto view = static_cast<std::string_view>(bytes);
  image.pixels.assign(view.begin(), view.end());
  return image;
}

// Reads the picture as read_png reads it from a file. Pillow's conversion to RGB would drop the
// transparency and cut 16 bits off at 255.
Image image_from_pil(py::handle picture) {
  const auto mode = picture.attr("mode").cast<std::string>();
  const bool deep = mode.starts_with("I");
  const bool transparent = mode == "RGBA" || mode == "LA" || mode == "PA" || mode == "RGBa" ||
                           mode == "La" || picture.attr("info").contains("transparency");
  if (!deep && !transparent) return copy_pixels(picture.attr("convert")("RGB"));
  const py::object plain =
      deep ? picture.attr("convert")("I").attr("convert")("I;16") : picture.attr("convert")("RGBA");
  const py::object file = py::module_::import("io").attr("BytesIO")();
  plain.attr("save")(file, "PNG", py::arg("compress_level") = 0);
  return decode_png(static_cast<std::string>(file.attr("getvalue")().cast<py::bytes>()),
                    "the picture");
}

std::vector<Image> checked_to_images(const Tensor& tensor) {
  require_float32(tensor, "tensor");
  if (tensor.shape().size() != 4 || tensor.dim(1) != 3) {
    throw InputError("tensor must have shape [N, 3, H, W], not " + to_string(tensor.shape()));
  }
  return to_images(tensor);
}

}  // namespace

Image image_from(py::handle picture) {
  if (py::isinstance(picture, pil().attr("Image"))) return image_from_pil(picture);
  const auto text = [](const py::object& object) { return py::str(object).cast<std::string>(); };
  const auto refuse = [](const std::string& what) {
    throw InputError("a picture is a PIL image or a uint8 array [H, W] or [H, W, 3], not " + what);
  };
  if (!py::hasattr(picture, "shape")) refuse(text(py::type::handle_of(picture).attr("__name__")));
  const py::module_ numpy = py::module_::import("numpy");
  py::object pixels = py::reinterpret_borrow<py::object>(picture);
  // Another order in memory is a matter of copying: OpenCV's BGR is turned to RGB by a view.
  if (py::isinstance(picture, numpy.attr("ndarray")))
    pixels = numpy.attr("ascontiguousarray")(pixels);
  Tensor array;
  try {
    array = tensor_from(pixels);
  } catch (const InputError&) {
    const std::string dtype = text(pixels.attr("dtype"));
    refuse(dtype + " " + text(pixels.attr("shape")) +
           (dtype.ends_with("uint8") ? " elsewhere than in CPU memory, or not in C order" : ""));
  }
  const Shape& shape = array.shape();
  const bool gray = shape.size() == 2;
  if (array.dtype() != DType::uint8 || !(gray || (shape.size() == 3 && shape[2] == 3)))
    refuse(std::string(name_of(array.dtype())) + " " + to_string(shape));
  Image image;
  image.height = static_cast<int>(shape[0]);
  image.width = static_cast<int>(shape[1]);
  image.pixels.resize(static_cast<std::size_t>(shape[0] * shape[1] * 3));
  const auto* bytes = static_cast<const std::uint8_t*>(array.data());
  for (std::size_t i = 0; i < image.pixels.size(); ++i) image.pixels[i] = bytes[gray ? i / 3 : i];
  return image;
}

py::object to_pil(const Image& image) {
  const py::bytes pixels(reinterpret_cast<const char*>(image.pixels.data()), image.pixels.size());
  return pil().attr("frombytes")("RGB", py::make_tuple(image.width, image.height), pixels);
}

void bind_image(py::module_& module) {
  module.def(
      "to_images", &checked_to_images, py::arg("tensor"),
      "[N, 3, H, W] float32 in [-1, 1] to N images; rounds as diffusers' VaeImageProcessor does.");
  module.def("from_image", &from_image, py::arg("image"),
             "Convert an image to [1, 3, H, W] float32 in [-1, 1].");
  module.def(
      "write_png", &write_png, py::arg("path"), py::arg("image"), py::arg("text") = TextEntries{},
      py::call_guard<py::gil_scoped_release>(),
      "`text` becomes the file's text chunks. Written under a temporary name, then renamed.");
  module.def("read_png", &read_png, py::arg("path"), py::call_guard<py::gil_scoped_release>(),
             "Read any PNG as 8-bit RGB. Transparent parts are drawn over black, and 16 bits are "
             "scaled to 8. Raises InputError "
             "naming the file.");
}

}  // namespace intaglio::python
