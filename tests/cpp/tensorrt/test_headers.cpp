// The tables of tensorrt_api.h against TensorRT's own headers, of whichever generation they are.
#include <NvInferRuntime.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "backend/tensorrt_api.h"

namespace intaglio {
namespace {

static_assert(NV_TENSORRT_MAJOR == 10 || NV_TENSORRT_MAJOR == 11);
const TensorRtApi& kApi = NV_TENSORRT_MAJOR == 10 ? kTensorRt10 : kTensorRt11;

#if defined(__x86_64__)  // elsewhere a pointer to a member is made in another way
// A pointer to a virtual method is one more than its place in the table (Itanium C++ ABI 2.3).
template <typename Method>
std::size_t slot(Method method) {
  const auto words = std::bit_cast<std::array<std::uintptr_t, 2>>(method);
  EXPECT_EQ(words[0] % 8, 1U);
  return (words[0] - 1) / sizeof(void*);
}

TEST(TensorRtHeaders, TablesAreThoseOfTheRuntime) {
  using Runtime = nvinfer1::apiv::VRuntime;
  using Deserialize = nvinfer1::ICudaEngine* (Runtime::*)(const void*, std::size_t) noexcept;
  EXPECT_EQ(kApi.runtime.deserialize,
            slot(static_cast<Deserialize>(&Runtime::deserializeCudaEngine)));
  EXPECT_EQ(kApi.runtime.get_logger, slot(&Runtime::getLogger));
}

TEST(TensorRtHeaders, TablesAreThoseOfTheEngine) {
  using Engine = nvinfer1::apiv::VCudaEngine;
  EXPECT_EQ(kApi.engine.create_context, slot(&Engine::createExecutionContext));
  EXPECT_EQ(kApi.engine.tensor_count, slot(&Engine::getNbIOTensors));
  EXPECT_EQ(kApi.engine.tensor_name, slot(&Engine::getIOTensorName));
  EXPECT_EQ(kApi.engine.set_streaming_budget, slot(&Engine::setWeightStreamingBudgetV2));
  EXPECT_EQ(kApi.engine.automatic_streaming_budget,
            slot(&Engine::getWeightStreamingAutomaticBudget));
}

TEST(TensorRtHeaders, TablesAreThoseOfTheContext) {
  using Context = nvinfer1::apiv::VExecutionContext;
  EXPECT_EQ(kApi.context.set_profile, slot(&Context::setOptimizationProfileAsync));
  EXPECT_EQ(kApi.context.set_input_shape, slot(&Context::setInputShape));
  EXPECT_EQ(kApi.context.tensor_shape, slot(&Context::getTensorShape));
  EXPECT_EQ(kApi.context.set_address, slot(&Context::setTensorAddress));
  EXPECT_EQ(kApi.context.infer_shapes, slot(&Context::inferShapes));
  EXPECT_EQ(kApi.context.enqueue, slot(&Context::enqueueV3));
  EXPECT_EQ(kApi.context.update_memory_size, slot(&Context::updateDeviceMemorySizeForShapes));
  EXPECT_EQ(kApi.context.set_memory, slot(&Context::setDeviceMemoryV2));
}

TEST(TensorRtHeaders, ALoggerIsAsOurs) {
  EXPECT_EQ(kApi.versioned_logger, NV_TENSORRT_MAJOR == 11);
  EXPECT_EQ(slot(&nvinfer1::ILogger::log),
            kApi.versioned_logger ? slot(&trt::Logger11::log) : slot(&trt::Logger10::log));
}
#endif

// TensorRT's wrappers keep their object where we look for it.
template <typename Interface>
struct Open : Interface {
  static std::ptrdiff_t place() {
    alignas(Interface) static std::byte memory[sizeof(Interface)];
    auto* open = reinterpret_cast<Open*>(memory);
    return reinterpret_cast<std::byte*>(&open->mImpl) - memory;
  }
};

TEST(TensorRtHeaders, WrappersAreATableAndAnObject) {
  const auto place = static_cast<std::ptrdiff_t>(offsetof(trt::Wrapper, implementation));
  EXPECT_EQ(Open<nvinfer1::IRuntime>::place(), place);
  EXPECT_EQ(Open<nvinfer1::ICudaEngine>::place(), place);
  EXPECT_EQ(Open<nvinfer1::IExecutionContext>::place(), place);
}

TEST(TensorRtHeaders, TypesLieInMemoryAsOurs) {
  static_assert(sizeof(trt::Dims) == sizeof(nvinfer1::Dims));
  static_assert(offsetof(trt::Dims, sizes) == offsetof(nvinfer1::Dims, d));
  static_assert(std::is_trivially_copyable_v<nvinfer1::Dims>);
  using nvinfer1::ILogger;
  EXPECT_EQ(static_cast<int>(trt::Severity::error), static_cast<int>(ILogger::Severity::kERROR));
  EXPECT_EQ(static_cast<int>(trt::Severity::warning),
            static_cast<int>(ILogger::Severity::kWARNING));
  EXPECT_EQ(static_cast<int>(trt::Allocation::user_managed),
            static_cast<int>(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
}

}  // namespace
}  // namespace intaglio
