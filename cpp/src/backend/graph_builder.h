// Makes small graphs of ONNX's operators in memory, with ONNX Runtime's model editor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/ort_api.h"

namespace intaglio {

// Values are named by the strings that the functions return.
class GraphBuilder {
 public:
  using Names = std::vector<std::string>;

  // An input of any size with so many axes.
  std::string input(const std::string& name, ONNXTensorElementDataType type, std::size_t rank);
  // The node's only output is called `name`, or gets a name of its own.
  std::string node(const std::string& op, const Names& inputs, const std::string& name = "");
  // The same with an integer attribute, as `axis` of Concat.
  std::string node(const std::string& op, const Names& inputs, const char* attribute,
                   std::int64_t value, const std::string& name = "");
  std::string constant(float value);
  // A vector, or with `scalar` the first value alone.
  std::string indices(const std::vector<std::int64_t>& values, bool scalar = false);
  // Makes a value an output of the graph with so many axes.
  void output(const std::string& name, ONNXTensorElementDataType type, std::size_t rank);

  Ort::Session open(const Ort::Env& environment, const Ort::SessionOptions& options);

 private:
  std::string fresh();
  std::string add(const std::string& op, const Names& inputs, std::vector<Ort::OpAttr>& attributes,
                  const std::string& name);

  Ort::Graph graph_;
  std::vector<Ort::ValueInfo> inputs_, outputs_;
  int count_ = 0;
};

}  // namespace intaglio
