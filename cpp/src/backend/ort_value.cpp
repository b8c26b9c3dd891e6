#include "backend/ort_value.h"

#include <cassert>

namespace intaglio {

namespace {

// Calls bind with the tensor as a value, which it makes for a tensor in host memory.
template <typename Bind>
void with_value(const Tensor& tensor, Bind&& bind) {
  if (tensor.device() == Device::provider) {
    bind(*static_cast<const Ort::Value*>(tensor.owner().get()));
    return;
  }
  static const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const Shape& shape = tensor.shape();
  bind(Ort::Value::CreateTensor(memory, const_cast<void*>(tensor.data()), tensor.bytes(),
                                shape.data(), shape.size(), ort_type(tensor.dtype())));
}

}  // namespace

ONNXTensorElementDataType ort_type(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::int64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case DType::uint8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  }
  assert(false);
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

void bind_input(Ort::IoBinding& binding, const std::string& name, const Tensor& tensor) {
  with_value(tensor, [&](const Ort::Value& value) { binding.BindInput(name.c_str(), value); });
}

void bind_output(Ort::IoBinding& binding, const std::string& name, const Tensor& tensor) {
  with_value(tensor, [&](const Ort::Value& value) { binding.BindOutput(name.c_str(), value); });
}

}  // namespace intaglio
