// libintaglio_ops: MASuppress as a custom op of ONNX Runtime. The library does not link ONNX
// Runtime. It receives the API through RegisterCustomOps, the entry point that ONNX Runtime looks
// for in a library of custom ops. It uses the C API, because the C++ header allows one API per
// process, and a process may have two copies of ONNX Runtime: that of Python's onnxruntime and that
// of libintaglio.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <map>
#include <mutex>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/ma_suppress.h"

namespace intaglio::ops {

namespace {

// The inputs in the order of SPEC.md.
enum Input : std::size_t { kHidden, kMask, kRef, kBranch, kKeep, kInputs };
constexpr std::array<const char*, kInputs> kNames = {"hidden", "mask", "ref", "branch", "keep"};

// Starting a thread costs more than computing fewer tokens than these.
constexpr std::size_t kTokensPerTask = 64;

// Carries a status of ONNX Runtime as an exception. The function that catches it owns the status.
struct Failure {
  OrtStatus* status;
};

void check(OrtStatus* status) {
  if (status) throw Failure{status};
}

using Shape = std::vector<std::int64_t>;

std::string to_string(const Shape& shape) {
  std::string text;
  for (const std::int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

// One execution of the kernel.
class Execution {
 public:
  Execution(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {
    for (std::size_t i = 0; i < kInputs; ++i)
      check(api.KernelContext_GetInput(context, i, &values_[i]));
    // A missing axis counts as -1, which no actual size equals, so a wrong rank fails the checks
    // below.
    const Shape hidden = shape_of(kHidden), branch = shape_of(kBranch);
    const auto size_of = [](const Shape& shape, std::size_t axis) {
      return axis < shape.size() ? shape[axis] : -1;
    };
    shape_ = {size_of(branch, 0), size_of(hidden, 1), size_of(hidden, 2)};
    expect(kHidden, {size_of(hidden, 0), shape_[1], shape_[2]});
    expect(kMask, {shape_[2]});
    expect(kRef, {shape_[2]});
    expect(kBranch, {shape_[0]});
    expect(kKeep, {shape_[0], shape_[1]});
    rows_ = static_cast<std::size_t>(hidden[0]);
  }

  void run() {
    inputs_ = {.hidden = elements<float>(kHidden),
               .mask = elements<float>(kMask),
               .ref = elements<float>(kRef),
               .branch = elements<std::int64_t>(kBranch),
               .keep = elements<float>(kKeep),
               .rows = rows_,
               .tokens = static_cast<std::size_t>(shape_[1])};
    check_branch(inputs_.branch, inputs_.rows);
    OrtValue* value = nullptr;
    check(api_.KernelContext_GetOutput(context_, 0, shape_.data(), shape_.size(), &value));
    output_ = {static_cast<float*>(data_of(value)), inputs_.keep.size() * inputs_.mask.size()};
    const std::size_t tasks = (inputs_.keep.size() + kTokensPerTask - 1) / kTokensPerTask;
    const auto task = [](void* self, std::size_t index) {
      static_cast<const Execution*>(self)->run_task(index);
    };
    if (tasks > 1) check(api_.KernelContext_ParallelFor(context_, task, tasks, 0, this));
    if (tasks == 1) run_task(0);
  }

 private:
  void run_task(std::size_t index) const {
    const std::size_t begin = index * kTokensPerTask;
    ma_suppress_tokens(inputs_, output_, begin,
                       std::min(begin + kTokensPerTask, inputs_.keep.size()));
  }

  Shape shape_of(Input input) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api_.GetTensorTypeAndShape(values_[input], &info));
    std::size_t rank = 0;
    OrtStatus* status = api_.GetDimensionsCount(info, &rank);
    Shape shape(rank);
    if (!status) status = api_.GetDimensions(info, shape.data(), rank);
    api_.ReleaseTensorTypeAndShapeInfo(info);
    check(status);
    return shape;
  }

  void expect(Input input, const Shape& expected) const {
    const Shape shape = shape_of(input);
    if (shape == expected) return;
    throw std::invalid_argument(std::string("MASuppress: ") + kNames[input] + " is " +
                                to_string(shape) + ", which does not fit the other inputs");
  }

  void* data_of(const OrtValue* value) const {
    void* data = nullptr;
    // The C API has no function for const values.
    check(api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    return data;
  }

  template <typename T>
  std::span<const T> elements(Input input) const {
    std::int64_t count = 1;
    for (const std::int64_t size : shape_of(input)) count *= size;
    return {static_cast<const T*>(data_of(values_[input])), static_cast<std::size_t>(count)};
  }

  const OrtApi& api_;
  OrtKernelContext* context_;
  std::array<const OrtValue*, kInputs> values_{};
  Shape shape_;  // of the output
  std::size_t rows_ = 0;
  MASuppressInputs inputs_;
  std::span<float> output_;
};

struct Kernel {
  const OrtApi* api;
};

// Runs the kernel and turns exceptions into a status, because none may cross the C interface.
OrtStatus* compute(void* kernel, OrtKernelContext* context) noexcept {
  const OrtApi& api = *static_cast<const Kernel*>(kernel)->api;
  try {
    Execution(api, context).run();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ORT_RUNTIME_EXCEPTION, "MASuppress: bad_alloc");
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  }
}

OrtCustomOp make_custom_op() {
  OrtCustomOp op{};
  op.version = ORT_API_VERSION;
  op.GetName = [](const OrtCustomOp*) { return "MASuppress"; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  // A null name means the CPU's execution provider.
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> std::size_t { return kInputs; };
  op.GetInputType = [](const OrtCustomOp*, std::size_t index) {
    return index == kBranch ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
                            : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp*, std::size_t) {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  op.GetInputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
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
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

// Returns the domain for one copy of ONNX Runtime. A domain must outlive every session that uses
// it, and ONNX Runtime does not report the end of the last one, so a domain is never released. The
// library stays loaded for the same reason.
OrtCustomOpDomain* domain_of(const OrtApi& api) {
  static const OrtCustomOp op = make_custom_op();
  static std::mutex mutex;
  static auto* domains = new std::map<const OrtApi*, OrtCustomOpDomain*>;
  const std::scoped_lock lock(mutex);
  OrtCustomOpDomain*& domain = (*domains)[&api];
  if (!domain) {
    OrtCustomOpDomain* created = nullptr;
    check(api.CreateCustomOpDomain("ai.intaglio", &created));
    check(api.CustomOpDomain_Add(created, &op));
    domain = created;
  }
  return domain;
}

}  // namespace

}  // namespace intaglio::ops

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  // An ONNX Runtime that is older than our headers gets no kernel and runs the function in the
  // graph.
  if (!api) return nullptr;
  try {
    return api->AddCustomOpDomain(options, intaglio::ops::domain_of(*api));
  } catch (const intaglio::ops::Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}
