#include "backend/graph_builder.h"

#include <algorithm>
#include <utility>

namespace intaglio {

namespace {

// The operators here are the same in all later versions that ONNX Runtime knows.
constexpr int kOpset = 18;

Ort::ValueInfo value_info(const std::string& name, ONNXTensorElementDataType type,
                          std::size_t rank) {
  std::vector<std::string> sizes;  // of one name each: any size
  for (std::size_t i = 0; i < rank; ++i) sizes.push_back(name + std::to_string(i));
  const Ort::TensorTypeAndShapeInfo shape(type, std::vector<std::int64_t>(rank, -1), &sizes);
  return Ort::ValueInfo(name, Ort::TypeInfo::CreateTensorInfo(shape.GetConst()).GetConst());
}

}  // namespace

std::string GraphBuilder::fresh() {
  std::string name = "v";
  return name.append(std::to_string(count_++));
}

std::string GraphBuilder::input(const std::string& name, ONNXTensorElementDataType type,
                                std::size_t rank) {
  inputs_.push_back(value_info(name, type, rank));
  return name;
}

void GraphBuilder::output(const std::string& name, ONNXTensorElementDataType type,
                          std::size_t rank) {
  outputs_.push_back(value_info(name, type, rank));
}

std::string GraphBuilder::add(const std::string& op, const Names& inputs,
                              std::vector<Ort::OpAttr>& attributes, const std::string& name) {
  std::string result = name.empty() ? fresh() : name;
  Ort::Node node(op, "", std::string("make_").append(result), inputs, {result}, attributes);
  graph_.AddNode(node);
  return result;
}

std::string GraphBuilder::node(const std::string& op, const Names& inputs,
                               const std::string& name) {
  std::vector<Ort::OpAttr> none;
  return add(op, inputs, none, name);
}

std::string GraphBuilder::node(const std::string& op, const Names& inputs, const char* attribute,
                               std::int64_t value, const std::string& name) {
  std::vector<Ort::OpAttr> attributes;
  attributes.emplace_back(attribute, &value, 1, ORT_OP_ATTR_INT);
  return add(op, inputs, attributes, name);
}

std::string GraphBuilder::constant(float value) {
  Ort::AllocatorWithDefaultOptions allocator;
  Ort::Value tensor = Ort::Value::CreateTensor<float>(allocator, nullptr, 0);
  *tensor.GetTensorMutableData<float>() = value;
  std::string name = fresh();
  graph_.AddInitializer(name, tensor, false);
  return name;
}

std::string GraphBuilder::indices(const std::vector<std::int64_t>& values, bool scalar) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto size = static_cast<std::int64_t>(values.size());
  Ort::Value tensor =
      Ort::Value::CreateTensor<std::int64_t>(allocator, scalar ? nullptr : &size, scalar ? 0 : 1);
  std::ranges::copy(values, tensor.GetTensorMutableData<std::int64_t>());
  std::string name = fresh();
  graph_.AddInitializer(name, tensor, false);
  return name;
}

Ort::Session GraphBuilder::open(const Ort::Env& environment, const Ort::SessionOptions& options) {
  graph_.SetInputs(inputs_);
  graph_.SetOutputs(outputs_);
  Ort::Model model({{"", kOpset}});
  model.AddGraph(graph_);
  return Ort::Session(environment, model, options);
}

}  // namespace intaglio
