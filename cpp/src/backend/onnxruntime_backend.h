#pragma once

#include <memory>

#include "intaglio/backend.h"

namespace intaglio {

// Graphs on ONNX Runtime's CPU provider; its library is loaded now.
std::shared_ptr<Backend> make_onnxruntime_backend(const BackendOptions& options);

}  // namespace intaglio
