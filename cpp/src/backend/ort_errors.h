// ONNX Runtime's exceptions as Intaglio's.
#pragma once

#include <new>
#include <string>

#include "backend/ort_api.h"

namespace intaglio {

[[noreturn]] void throw_out_of_memory(const std::string& action);
[[noreturn]] void throw_translated(const std::string& action, const std::string& device,
                                   const Ort::Exception& error);

// Calls `body` and translates ONNX Runtime's exceptions into Intaglio's. It takes the parts of the
// message separately, so that it allocates nothing when `body` succeeds.
template <typename Body>
auto translate_errors(const char* verb, const std::string& graph, const std::string& device,
                      Body&& body) {
  try {
    return body();
  } catch (const Ort::Exception& error) {
    throw_translated(verb + graph, device, error);
  } catch (const std::bad_alloc&) {
    throw_out_of_memory(verb + graph);
  }
}

}  // namespace intaglio
