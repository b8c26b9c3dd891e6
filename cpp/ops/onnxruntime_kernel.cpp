// libintaglio_ops: the ops of SPEC.md as custom ops of ONNX Runtime. The library does not link ONNX
// Runtime. It receives the API through RegisterCustomOps, the entry point that ONNX Runtime looks
// for in a library of custom ops.
#include <array>
#include <map>
#include <mutex>

#include "ops/custom_op.h"
#include "ops/delta_coding.h"
#include "ops/ma_suppress.h"

namespace intaglio::ops {

namespace {

constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto kUint8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;

struct MASuppress {
  static constexpr const char* kName = "MASuppress";
  enum Input : std::size_t { kHidden, kMask, kRef, kBranch, kKeep, kSource };
  static constexpr std::array kInputs = {
      Argument{"hidden", kFloat}, Argument{"mask", kFloat}, Argument{"ref", kFloat},
      Argument{"branch", kInt64}, Argument{"keep", kFloat}, Argument{"source", kInt64, true}};
  static constexpr std::array kOutputs = {Argument{"output", kFloat}};

  static void run(const Execution& execution) {
    const Shape hidden = execution.shape(kHidden);
    const std::int64_t rows = size_of(execution.shape(kBranch), 0);
    const std::int64_t tokens = size_of(hidden, 1), channels = size_of(hidden, 2);
    execution.expect(kHidden, {size_of(hidden, 0), tokens, channels});
    execution.expect(kMask, {channels});
    execution.expect(kRef, {channels});
    execution.expect(kBranch, {rows});
    execution.expect(kKeep, {rows, tokens});
    const bool with_source = execution.has(kSource);
    if (with_source) execution.expect(kSource, {rows, tokens});
    const MASuppressInputs inputs{.hidden = execution.input<float>(kHidden),
                                  .mask = execution.input<float>(kMask),
                                  .ref = execution.input<float>(kRef),
                                  .branch = execution.input<std::int64_t>(kBranch),
                                  .keep = execution.input<float>(kKeep),
                                  .source = with_source ? execution.input<std::int64_t>(kSource)
                                                        : std::span<const std::int64_t>(),
                                  .rows = static_cast<std::size_t>(hidden[0]),
                                  .tokens = static_cast<std::size_t>(tokens)};
    check_branch(inputs.branch, inputs.rows);
    check_source(inputs.source, inputs.rows * inputs.tokens);
    const auto output = execution.output<float>(0, {rows, tokens, channels});
    execution.for_tokens(inputs.keep.size(), [&](std::size_t begin, std::size_t end) {
      ma_suppress_tokens(inputs, output, begin, end);
    });
  }
};

struct DeltaQuantize {
  static constexpr const char* kName = "DeltaQuantize";
  enum Input : std::size_t { kX, kAnchor, kKept };
  static constexpr std::array kInputs = {Argument{"x", kFloat}, Argument{"anchor", kInt64},
                                         Argument{"kept", kFloat}};
  static constexpr std::array kOutputs = {Argument{"quantized", kUint8}, Argument{"scale", kFloat}};

  static void run(const Execution& execution) {
    const Shape x = execution.shape(kX);
    const std::int64_t rows = size_of(x, 0), tokens = size_of(x, 1), channels = size_of(x, 2);
    execution.expect(kX, {rows, tokens, channels});
    execution.expect(kAnchor, {rows});
    execution.expect(kKept, {channels});
    const DeltaQuantizeInputs inputs{.x = execution.input<float>(kX),
                                     .anchor = execution.input<std::int64_t>(kAnchor),
                                     .kept = execution.input<float>(kKept),
                                     .tokens = static_cast<std::size_t>(tokens)};
    check_anchor(inputs.anchor);
    const DeltaQuantizeOutputs outputs{
        .quantized = execution.output<std::uint8_t>(0, {rows, tokens, channels}),
        .scale = execution.output<float>(1, {rows, tokens, 1})};
    execution.for_tokens(outputs.scale.size(), [&](std::size_t begin, std::size_t end) {
      delta_quantize_tokens(inputs, outputs, begin, end);
    });
  }
};

struct DeltaDequantize {
  static constexpr const char* kName = "DeltaDequantize";
  enum Input : std::size_t { kProduct, kScale, kColumns, kBias, kAnchor };
  static constexpr std::array kInputs = {Argument{"product", kInt32}, Argument{"scale", kFloat},
                                         Argument{"columns", kFloat}, Argument{"bias", kFloat},
                                         Argument{"anchor", kInt64}};
  static constexpr std::array kOutputs = {Argument{"output", kFloat}};

  static void run(const Execution& execution) {
    const Shape product = execution.shape(kProduct);
    const std::int64_t rows = size_of(product, 0), tokens = size_of(product, 1);
    const std::int64_t channels = size_of(product, 2);
    execution.expect(kProduct, {rows, tokens, channels});
    execution.expect(kScale, {rows, tokens, 1});
    execution.expect(kColumns, {channels});
    execution.expect(kBias, {channels});
    execution.expect(kAnchor, {rows});
    const DeltaDequantizeInputs inputs{.product = execution.input<std::int32_t>(kProduct),
                                       .scale = execution.input<float>(kScale),
                                       .columns = execution.input<float>(kColumns),
                                       .bias = execution.input<float>(kBias),
                                       .anchor = execution.input<std::int64_t>(kAnchor),
                                       .tokens = static_cast<std::size_t>(tokens)};
    check_anchor(inputs.anchor);
    const auto output = execution.output<float>(0, {rows, tokens, channels});
    execution.for_tokens(inputs.scale.size(), [&](std::size_t begin, std::size_t end) {
      delta_dequantize_tokens(inputs, output, begin, end);
    });
  }
};

// Returns the domain for one copy of ONNX Runtime. A domain must outlive every session that uses
// it, and ONNX Runtime does not report the end of the last one, so a domain is never released. The
// library stays loaded for the same reason.
OrtCustomOpDomain* domain_of(const OrtApi& api) {
  static const std::array ops = {make_custom_op<MASuppress>(), make_custom_op<DeltaQuantize>(),
                                 make_custom_op<DeltaDequantize>()};
  static std::mutex mutex;
  static auto* domains = new std::map<const OrtApi*, OrtCustomOpDomain*>;
  const std::scoped_lock lock(mutex);
  OrtCustomOpDomain*& domain = (*domains)[&api];
  if (!domain) {
    OrtCustomOpDomain* created = nullptr;
    check(api.CreateCustomOpDomain("ai.intaglio", &created));
    for (const OrtCustomOp& op : ops) check(api.CustomOpDomain_Add(created, &op));
    domain = created;
  }
  return domain;
}

}  // namespace

}  // namespace intaglio::ops

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  // An ONNX Runtime that is older than our headers gets no kernel and runs the functions in the
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
