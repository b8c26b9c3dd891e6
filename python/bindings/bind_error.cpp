#include <new>

#include "bindings.h"
#include "casters.h"
#include "intaglio/error.h"
#include "intaglio/validate.h"

namespace intaglio::python {
namespace {

// Owned by the module for the life of the process, as CPython's own exceptions are.
struct Types {
  PyObject* base;
  PyObject* usage;
  PyObject* input;
  PyObject* unavailable;
  PyObject* out_of_memory;
  PyObject* interrupted;
} types;

PyObject* make(py::module_& module, const char* name, const char* doc, const py::object& bases,
               ExitCode code) {
  py::dict members;
  members["exit_code"] = static_cast<int>(code);
  members["__module__"] = "intaglio";  // where people import it from
  PyObject* type = PyErr_NewExceptionWithDoc((std::string("intaglio.") + name).c_str(), doc,
                                             bases.ptr(), members.ptr());
  if (!type) throw py::error_already_set();
  module.add_object(name, type);
  return type;
}

PyObject* type_of(ExitCode code) {
  switch (code) {
    case ExitCode::usage:
      return types.usage;
    case ExitCode::bad_input:
      return types.input;
    case ExitCode::unavailable:
      return types.unavailable;
    case ExitCode::out_of_memory:
      return types.out_of_memory;
    case ExitCode::interrupted:
      return types.interrupted;
    case ExitCode::ok:
      break;
  }
  return types.base;
}

}  // namespace

py::object exception_of(const Error& error) {
  const std::string message = with_field_names(error.what());
  // Messages may quote bytes of a file or a prompt that are not UTF-8.
  const auto text = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
      message.data(), static_cast<Py_ssize_t>(message.size()), "backslashreplace"));
  if (!text) throw py::error_already_set();
  return py::reinterpret_borrow<py::object>(type_of(error.code()))(text);
}

void bind_error(py::module_& module) {
  const auto with = [](PyObject* second) {
    return py::make_tuple(py::handle(types.base), py::handle(second));
  };
  types.base = make(
      module, "Error",
      "Something that the caller can correct. `exit_code` is what the command line would end with.",
      py::reinterpret_borrow<py::object>(PyExc_Exception), ExitCode::bad_input);
  types.usage =
      make(module, "UsageError", "A call that makes no sense: steps 0, an unknown scheduler.",
           with(PyExc_ValueError), ExitCode::usage);
  types.input = make(module, "InputError", "A file, bundle, prompt or array that cannot be used.",
                     with(PyExc_ValueError), ExitCode::bad_input);
  types.unavailable =
      make(module, "UnavailableError", "A device, backend or library that is not there.",
           with(PyExc_RuntimeError), ExitCode::unavailable);
  types.out_of_memory = make(module, "OutOfMemoryError", "More memory was needed than there is.",
                             with(PyExc_MemoryError), ExitCode::out_of_memory);
  types.interrupted =
      make(module, "Interrupted",
           "The step callback stopped the run. Ctrl-C raises KeyboardInterrupt instead.",
           py::reinterpret_borrow<py::object>(types.base), ExitCode::interrupted);
  py::class_<Problem>(module, "Problem", "What is wrong with one option of a request.")
      .def_readonly("field", &Problem::field, "the option's name, as generate() takes it")
      .def_readonly("message", &Problem::message, "one sentence: what is wrong and what to do")
      .def(py::pickle(
          [](const Problem& problem) {
            return py::make_tuple(problem.field, problem.message, static_cast<int>(problem.code));
          },
          [](const py::tuple& state) {
            return Problem{state[0].cast<std::string>(), state[1].cast<std::string>(),
                           static_cast<ExitCode>(state[2].cast<int>())};
          }))
      .def("__repr__", [](const Problem& problem) {
        return "<Problem with " + problem.field + ": " + problem.message + ">";
      });
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const Error& known) {
      const py::object exception = exception_of(known);
      PyErr_SetObject(py::type::handle_of(exception).ptr(), exception.ptr());
    } catch (const std::bad_alloc&) {
      PyErr_SetString(types.out_of_memory, "out of memory: use a smaller size or batch");
    }
  });
}

}  // namespace intaglio::python
