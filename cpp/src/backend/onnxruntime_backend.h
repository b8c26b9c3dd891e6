#pragma once

#include <memory>

#include "backend/device_name.h"
#include "intaglio/backend.h"

namespace intaglio {

// Makes a backend that runs graphs with one of ONNX Runtime's execution providers. It loads the
// library and tries the provider at once, and throws UnavailableError when one of them does not
// work. Tensors are in host memory, so a GPU's provider copies them to the GPU and back in every
// step.
std::shared_ptr<Backend> make_onnxruntime_backend(const DeviceName& device,
                                                  const BackendOptions& options,
                                                  const Bundle& bundle);

}  // namespace intaglio
