#include "bindings.h"
#include "casters.h"
#include "intaglio/backend.h"
#include "intaglio/error.h"
#include "intaglio/options.h"
#include "intaglio/validate.h"
#include "options.h"
#include "text.h"

namespace intaglio::python {
namespace {

template <typename T>
T convert(py::handle value) {
  return value.cast<T>();
}

// Takes a str only, where Python's str() would make a text of anything.
template <>
std::string convert(py::handle value) {
  if (!py::isinstance<py::str>(value)) throw py::cast_error();
  return utf8_of(py::reinterpret_borrow<py::str>(value));
}

template <typename T>
void assign(T& field, py::handle value) {
  field = convert<T>(value);
}

template <typename T>
void assign(std::optional<T>& field, py::handle value) {
  field = convert<T>(value);
}

// A number stands for a list of one.
template <typename T>
void assign(std::vector<T>& field, py::handle value) {
  if (PyIndex_Check(value.ptr()) && is_number(value.ptr())) {
    field = {convert<T>(value)};
  } else {
    field = convert<std::vector<T>>(value);
  }
}

// Says what would be right instead of a value that people expect to be taken.
std::string hint(const std::string& option, py::handle value) {
  const bool list = py::isinstance<py::list>(value) || py::isinstance<py::tuple>(value);
  if (list && (option == "prompt" || option == "negative_prompt"))
    return ": call generate() once for each text, or add each to a Batch";
  if (option == "seeds" && PyLong_Check(value.ptr()))
    return ": give a number from 0 to 2**64 - 1, for a random one random.getrandbits(64)";
  return {};
}

[[noreturn]] void refuse(const OptionInfo& info, py::handle value) {
  throw UsageError(std::string(info.name) + " takes " + info.value + " (" + info.help + "), not " +
                   py::repr(value).cast<std::string>() + hint(info.name, value));
}

// Says what may have been meant by a keyword that there is not.
std::string meant_keyword(const std::string& name) {
  std::vector<std::string> names{"ma_tokens", "image", "mask", "latents", "prompt_embeds"};
  const GenerateOptions options;
  visit_options(options,
                [&](const OptionInfo& info, const auto&) { names.emplace_back(info.name); });
  return with_field_names(meant_option(name, names));
}

void bind_checks(py::module_& module) {
  module.def(
      "meant_keyword", &meant_keyword, py::arg("name"),
      "Return which keyword of generate() may be meant by one that it does not have, as the end "
      "of a sentence.");
  module.def(
      "validate",
      [](const Bundle& bundle, const py::dict& options) {
        const GenerateOptions read = options_from(options);
        const ReleasedGil release;
        return validate(bundle, read);
      },
      py::arg("bundle"), py::arg("options"),
      "Return what is wrong with these keywords of generate(), in the order in which it checks "
      "them; the list is empty when generate() would start to run. Raises UsageError for a value "
      "of the wrong type and for a keyword that there is not.");
  module.def(
      "drawn_size",
      [](const Bundle& bundle, std::pair<int, int> image, bool masked, const py::dict& options) {
        GenerateOptions given = options_from(options);
        given.image = Image{image.first, image.second, {}};
        if (masked) given.mask.emplace();
        const GenerateOptions filled = with_defaults(bundle, std::move(given));
        return std::pair(*filled.height, *filled.width);
      },
      py::arg("bundle"), py::arg("image"), py::arg("masked"), py::arg("options"),
      "Return height and width that generate() draws with these keywords and a picture of `image`, "
      "width and height in pixels, with a mask or without one.");
  module.def(
      "unused_guidance",
      [](const Bundle& bundle, const py::dict& options) {
        return with_field_names(unused_guidance(bundle, options_from(options)));
      },
      py::arg("bundle"), py::arg("options"),
      "Return the notes of generate() about guidance that these keywords ask for and that no step "
      "uses. Raises the UsageError or InputError of the first problem.");
}

// One picture, or a list of them.
void read_images(const py::object& value, GenerateOptions& options) {
  if (!py::isinstance<py::list>(value) && !py::isinstance<py::tuple>(value)) {
    options.image = image_from(value);
    return;
  }
  if (py::len(value) == 0)
    throw UsageError("image is an empty list: give a picture, or leave it out");
  for (const py::handle picture : value) options.references.push_back(image_from(picture));
  options.image = std::move(options.references.front());
  options.references.erase(options.references.begin());
}

}  // namespace

GenerateOptions options_from(const py::dict& keywords) {
  GenerateOptions options;
  py::dict left = keywords.attr("copy")();
  const auto take = [&](const char* name) -> py::object {
    return left.attr("pop")(name, py::none());
  };
  visit_options(options, [&](const OptionInfo& info, auto& field) {
    const py::object value = take(info.name);
    if (value.is_none()) return;
    try {
      assign(field, value);
    } catch (const py::cast_error&) {
      refuse(info, value);
    }
  });
  // These are not on the list: a flag names a file for them, and Python gives the object itself.
  if (const py::object value = take("ma_tokens"); !value.is_none())
    options.ma_tokens = image_from(value);
  if (const py::object value = take("image"); !value.is_none()) read_images(value, options);
  if (const py::object value = take("mask"); !value.is_none()) options.mask = image_from(value);
  if (const py::object value = take("latents"); !value.is_none())
    options.latents = tensor_from(value);
  if (const py::object value = take("prompt_embeds"); !value.is_none()) {
    if (!py::isinstance<PromptEmbeddings>(value))
      throw UsageError("prompt_embeds takes PromptEmbeddings or the path of their file, not " +
                       py::repr(value).cast<std::string>());
    options.prompt_embeds = value.cast<PromptEmbeddings>();
  }
  for (const auto& [key, value] : left) {
    const auto name = py::str(key).cast<std::string>();
    throw UsageError("generate() has no option " + name + meant_keyword(name));
  }
  return options;
}

void bind_options(py::module_& module) {
  py::class_<OptionInfo>(module, "OptionInfo",
                         "One option of generate(), as the command line and Python share it.")
      .def_property_readonly("name", [](const OptionInfo& info) { return info.name; })
      .def_property_readonly(
          "value", [](const OptionInfo& info) { return info.value; },
          "the name of the value in the help")
      .def_property_readonly("flags", &flags_of)
      .def_property_readonly("help", [](const OptionInfo& info) { return info.help; })
      .def("__repr__", [](const OptionInfo& info) {
        return std::string("<OptionInfo ") + info.name + " " + info.value + ">";
      });
  module.def(
      "option_infos",
      [] {
        std::vector<OptionInfo> infos;
        const GenerateOptions options;
        visit_options(options, [&](const OptionInfo& info, const auto&) { infos.push_back(info); });
        return infos;
      },
      "Return every option of generate(), in the order of the help.");
  module.def(
      "option_defaults",
      [] {
        py::dict defaults;
        const GenerateOptions options;
        visit_options(options, [&](const OptionInfo& info, const auto& field) {
          defaults[info.name] = field;
        });
        return defaults;
      },
      "Return the default of every option; None stands for the bundle's.");
  module.def(
      "png_text",
      [](const Bundle& bundle, const py::dict& options, std::size_t image,
         const DeviceChoice& choice) {
        return png_text(bundle, options_from(options), image, choice);
      },
      py::arg("bundle"), py::arg("options"), py::arg("image"), py::arg("choice"),
      "Return what a PNG says about the image with this number in its batch, which `choice` drew.");
  bind_checks(module);
}

}  // namespace intaglio::python
