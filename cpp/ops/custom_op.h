// A custom op of ONNX Runtime on its C API. The C++ header allows one API per process, and a
// process may have two copies of ONNX Runtime: that of Python's onnxruntime and that of
// libintaglio.
#pragma once

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace intaglio::ops {

// Carries a status of ONNX Runtime as an exception. The function that catches it owns the status.
struct Failure {
  OrtStatus* status;
};

inline void check(OrtStatus* status) {
  if (status) throw Failure{status};
}

// An input or output of an op.
struct Argument {
  const char* name;
  ONNXTensorElementDataType type;
  bool optional = false;  // which only inputs can be
};

using Shape = std::vector<std::int64_t>;

inline std::size_t count_of(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  return static_cast<std::size_t>(count);
}

// Returns -1 for an axis that is missing, which no actual size equals, so that a wrong rank does
// not fit.
inline std::int64_t size_of(const Shape& shape, std::size_t axis) {
  return axis < shape.size() ? shape[axis] : -1;
}

inline std::string to_string(const Shape& shape) {
  std::string text;
  for (const std::int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

// The inputs and outputs of one execution of a kernel.
class Execution {
 public:
  Execution(const OrtApi& api, OrtKernelContext* context, std::span<const Argument> inputs)
      : api_(api), context_(context) {
    std::size_t count = 0;
    check(api_.KernelContext_GetInputCount(context_, &count));
    given_.reserve(count);
    for (std::size_t i = 0; i < std::min(count, inputs.size()); ++i)
      given_.push_back(read(i, inputs[i].name));
  }

  // Whether the node has this optional input.
  bool has(std::size_t input) const { return input < given_.size() && given_[input].data; }

  const Shape& shape(std::size_t input) const { return given_[input].shape; }

  void expect(std::size_t input, const Shape& expected) const {
    const auto& [name, data, shape] = given_[input];
    if (shape == expected) return;
    throw std::invalid_argument(std::string(name) + " is " + to_string(shape) +
                                ", which does not fit the other inputs");
  }

  template <typename T>
  std::span<const T> input(std::size_t index) const {
    const Given& given = given_[index];
    return {static_cast<const T*>(given.data), count_of(given.shape)};
  }

  template <typename T>
  std::span<T> output(std::size_t index, const Shape& shape) const {
    OrtValue* value = nullptr;
    check(api_.KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value));
    return {static_cast<T*>(data_of(value)), count_of(shape)};
  }

  // Calls compute(begin, end) for parts of `tokens` tokens on the threads of ONNX Runtime.
  template <typename Compute>
  void for_tokens(std::size_t tokens, const Compute& compute) const {
    // Starting a thread costs more than computing fewer tokens than these.
    constexpr std::size_t per_task = 64;
    struct Work {
      const Compute& compute;
      std::size_t tokens;
    } work{compute, tokens};
    const auto run = [](void* data, std::size_t index) {
      const Work& of = *static_cast<const Work*>(data);
      of.compute(index * per_task, std::min((index + 1) * per_task, of.tokens));
    };
    const std::size_t tasks = (tokens + per_task - 1) / per_task;
    if (tasks > 1) check(api_.KernelContext_ParallelFor(context_, run, tasks, 0, &work));
    if (tasks == 1) run(&work, 0);
  }

 private:
  struct Given {
    const char* name;
    const void* data;
    Shape shape;
  };

  Given read(std::size_t index, const char* name) const {
    const OrtValue* value = nullptr;
    check(api_.KernelContext_GetInput(context_, index, &value));
    if (!value) return {name, nullptr, {}};  // an optional input that the node leaves out
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api_.GetTensorTypeAndShape(value, &info));
    std::size_t rank = 0;
    OrtStatus* status = api_.GetDimensionsCount(info, &rank);
    Shape shape(rank);
    if (!status) status = api_.GetDimensions(info, shape.data(), rank);
    api_.ReleaseTensorTypeAndShapeInfo(info);
    check(status);
    return {name, data_of(value), std::move(shape)};
  }

  void* data_of(const OrtValue* value) const {
    void* data = nullptr;
    // The C API has no function for const values.
    check(api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    return data;
  }

  const OrtApi& api_;
  OrtKernelContext* context_;
  std::vector<Given> given_;
};

struct Kernel {
  const OrtApi* api;
};

// Runs the kernel and turns exceptions into a status, because none may cross the C interface.
template <typename Op>
OrtStatus* run_kernel(void* kernel, OrtKernelContext* context) noexcept {
  const OrtApi& api = *static_cast<const Kernel*>(kernel)->api;
  const auto fail = [&](OrtErrorCode code, const char* what) {
    return api.CreateStatus(code, (std::string(Op::kName) + ": " + what).c_str());
  };
  try {
    Op::run(Execution(api, context, Op::kInputs));
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::bad_alloc&) {
    return fail(ORT_RUNTIME_EXCEPTION, "bad_alloc");
  } catch (const std::exception& error) {
    return fail(ORT_INVALID_ARGUMENT, error.what());
  }
}

// `Op` has kName, the arrays kInputs and kOutputs of Arguments, and run(Execution).
template <typename Op>
OrtCustomOp make_custom_op() {
  OrtCustomOp op{};
  op.version = ORT_API_VERSION;
  op.GetName = [](const OrtCustomOp*) { return Op::kName; };
  // Later versions only add inputs that a node may leave out, so this is the schema of all.
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  // A null name means the CPU's execution provider.
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Op::kInputs); };
  op.GetInputType = [](const OrtCustomOp*, std::size_t i) { return Op::kInputs[i].type; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Op::kOutputs); };
  op.GetOutputType = [](const OrtCustomOp*, std::size_t i) { return Op::kOutputs[i].type; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, std::size_t i) {
    return Op::kInputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) {
    return INPUT_OUTPUT_REQUIRED;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return OrtMemTypeDefault; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo*,
                         void** kernel) -> OrtStatus* {
    *kernel = new Kernel{api};
    return nullptr;
  };
  op.KernelComputeV2 = run_kernel<Op>;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

}  // namespace intaglio::ops
