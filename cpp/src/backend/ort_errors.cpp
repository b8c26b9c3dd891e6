#include "backend/ort_errors.h"

#include <algorithm>
#include <initializer_list>

#include "intaglio/error.h"

namespace intaglio {

namespace {

bool contains_any(const std::string& text, std::initializer_list<const char*> parts) {
  return std::ranges::any_of(
      parts, [&](const char* part) { return text.find(part) != std::string::npos; });
}

}  // namespace

void throw_out_of_memory(const std::string& action) {
  throw OutOfMemoryError(action +
                         " needs more memory than is available: use a smaller size or batch, or "
                         "load fewer parts at once with --max-memory auto (max_memory in Python)");
}

void throw_translated(const std::string& action, const std::string& device,
                      const Ort::Exception& error) {
  const std::string what = error.what();
  if (contains_any(what, {"allocate memory", "bad_alloc", "out of memory"}))
    throw_out_of_memory(action);
  if (contains_any(what, {"pthread_create"})) {
    throw UnavailableError(
        action +
        " needs more threads than the system allows this process: give --threads 1, or raise the "
        "limit (ulimit -u, or the container's limit of processes)");
  }
  if (device != "cpu") {
    throw UnavailableError(action + " failed on device " + device + ": " + what +
                           "; use --device cpu to run without it");
  }
  throw InputError(action + " failed in ONNX Runtime: " + what);
}

}  // namespace intaglio
