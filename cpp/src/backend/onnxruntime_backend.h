#pragma once

#include <memory>
#include <string>

#include "intaglio/backend.h"

namespace intaglio {

// Graphs on one of ONNX Runtime's providers; `device` is cpu, cuda or ort-tensorrt. The library is
// loaded now, and a GPU's provider tried out. Tensors are host memory: on a GPU they are copied
// there and back in every step.
std::shared_ptr<Backend> make_onnxruntime_backend(const std::string& device,
                                                  const BackendOptions& options,
                                                  const Bundle& bundle);

}  // namespace intaglio
