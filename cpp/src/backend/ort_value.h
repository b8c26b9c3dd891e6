// Tensors as ONNX Runtime's values.
#pragma once

#include "backend/ort_api.h"
#include "intaglio/tensor.h"

namespace intaglio {

ONNXTensorElementDataType ort_type(DType dtype);

// Binds the tensor's own memory. ONNX Runtime copies an input in host memory here, and an output in
// each run, where the provider has memory of its own.
void bind_input(Ort::IoBinding& binding, const std::string& name, const Tensor& tensor);
void bind_output(Ort::IoBinding& binding, const std::string& name, const Tensor& tensor);

}  // namespace intaglio
