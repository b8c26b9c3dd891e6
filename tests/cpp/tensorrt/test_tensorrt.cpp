#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda_stream.h"
#include "backend/tensorrt_engine.h"
#include "backend/tensorrt_graph.h"
#include "backend/tensorrt_library.h"
#include "gpu.h"
#include "intaglio/error.h"
#include "intaglio/file.h"

// Of the library that this program is linked with.
extern "C" int getInferLibVersion() noexcept;
extern "C" void* createInferRuntime_INTERNAL(void* logger, int version) noexcept;

namespace intaglio {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

const TensorRtLibrary& library() { return load_tensorrt("tensorrt-rtx", INTAGLIO_TENSORRT_RTX); }

template <typename Call>
std::string refusal(Call&& call) {
  try {
    call();
  } catch (const UnavailableError& error) {
    return error.what();
  }
  return {};
}

class SilentLogger final : public trt::Logger11 {
 public:
  void log(trt::Severity, const char*) noexcept override {}
};

TEST(TensorRtLibrary, IsTheOneThatIsLinked) {
  EXPECT_EQ(library().number, getInferLibVersion());
  EXPECT_EQ(library().title, "TensorRT-RTX");
  // Searched for: the system's loader has it, since this program is linked with it.
  EXPECT_EQ(load_tensorrt("tensorrt-rtx", {}).version, library().version);
  // pip's word for the version: site-packages/tensorrt_rtx_cu12_libs-1.7.1.116.dist-info
  std::vector<std::string> installed;
  for (const auto& entry :
       fs::directory_iterator(fs::path(INTAGLIO_TENSORRT_RTX).parent_path().parent_path()))
    installed.push_back(entry.path().filename().string());
  EXPECT_THAT(installed, testing::Contains(AllOf(
                             testing::StartsWith("tensorrt_rtx_cu"),
                             testing::EndsWith("_libs-" + library().version + ".dist-info"))));
}

TEST(TensorRtLibrary, MakesABuilder) {
  SilentLogger logger;
  EXPECT_NE(TensorRtObject(
                static_cast<trt::Wrapper*>(library().create_builder(&logger, library().number))),
            nullptr);
}

// make_runtime asks the runtime for its logger, and with another table gets something else.
TEST(TensorRtLibrary, MakesARuntimeOfTheInterfaceThatItsVersionSays) {
  EXPECT_NE(make_runtime(library()), nullptr);
  TensorRtApi api = *library().api;
  api.runtime.get_logger -= 1;  // the error recorder, of which there is none
  TensorRtLibrary wrong = library();
  wrong.api = &api;
  EXPECT_THAT(refusal([&] { make_runtime(wrong); }), HasSubstr("does not have the interface"));
}

// A compiler's own calls of virtual methods, with the kinds of arguments that TensorRT's take.
class Implementation {
 public:
  virtual ~Implementation() = default;
  virtual bool set(const char* name, const trt::Dims& dims) noexcept {
    kept = dims;
    return std::string(name) == "x";
  }
  virtual trt::Dims get(const char* name, std::int64_t more) const noexcept {
    trt::Dims dims = kept;
    dims.sizes[1] += more + static_cast<std::int64_t>(std::string(name).size());
    return dims;
  }
  trt::Dims kept{};
};

TEST(TensorRtCalls, AreWhatACompilerMakesOfThem) {
  Implementation implementation;
  const trt::Wrapper wrapper{nullptr, &implementation};
  const trt::Dims dims{2, {4, 3}};
  EXPECT_TRUE(trt::call<bool>(&wrapper, 2, "x", &dims));  // behind the two of the destructor
  EXPECT_FALSE(trt::call<bool>(&wrapper, 2, "y", &dims));
  EXPECT_EQ(implementation.kept.sizes[0], 4);
  const auto got = trt::call<trt::Dims>(&wrapper, 3, "abc", std::int64_t{10});
  EXPECT_EQ(got.count, 2);
  EXPECT_EQ(got.sizes[1], 16);
}

TEST(TensorRtLibrary, SaysWhatWasTried) {
  EXPECT_THAT(refusal([] { load_tensorrt("tensorrt-rtx", "/nowhere/libtensorrt_rtx.so.1"); }),
              AllOf(HasSubstr("no usable TensorRT-RTX library: give --tensorrt-library"),
                    HasSubstr("/nowhere/libtensorrt_rtx.so.1")));
  EXPECT_THAT(refusal([] { load_tensorrt("tensorrt-rtx", "libm.so.6"); }),
              HasSubstr("libm.so.6 is not TensorRT-RTX"));
  // TensorRT-RTX's own version is none of TensorRT's.
  EXPECT_THAT(refusal([] { load_tensorrt("tensorrt", INTAGLIO_TENSORRT_RTX); }),
              HasSubstr("is TensorRT 1.7."));
}

EngineComponent component_of(std::uint64_t bytes) {
  EngineComponent component;
  component.key = "0123456789abcdef";
  component.plan = "double.plan";
  component.plan_bytes = bytes;
  component.inputs = {{"x", "float32", {{{1, 3}, {2, 3}, {8, 3}}}}};
  component.outputs = {{"y", "float32", {}}};
  return component;
}

void load(const fs::path& plan) {
  TensorRtEngine(library(), component_of(fs::file_size(plan)), plan, false);
}

TEST(TensorRtPlan, WhatIsNoneOrCutShortIsRefusedWithTensorRtsReason) {
  const std::string whole = read_file(INTAGLIO_PLAN);
  ASSERT_GT(whole.size(), 10'000U);
  const fs::path plan = fs::path(testing::TempDir()) / "broken.plan";
  for (const std::string& content :
       {std::string("no plan"), whole.substr(0, 100), whole.substr(0, whole.size() / 2)}) {
    std::ofstream(plan, std::ios::binary) << content;
    EXPECT_THAT(
        refusal([&] { load(plan); }),
        AllOf(HasSubstr("loading " + plan.string() + " failed: "), Not(HasSubstr("no reason"))))
        << content.size();
  }
  fs::remove(plan);
}

TEST(TensorRtPlan, WhatIsNotThereIsRefused) {
  const fs::path plan = fs::path(testing::TempDir()) / "none.plan";
  const auto refused = [&] {
    return refusal([&] { TensorRtEngine(library(), component_of(0), plan, false); });
  };
  EXPECT_THAT(refused(), HasSubstr("cannot read " + plan.string() + ": No such file"));
  std::ofstream(plan).close();
  EXPECT_THAT(refused(), HasSubstr("it is empty"));
  fs::remove(plan);
}

TEST(TensorRtPlan, WithoutADriverAWholeOneIsRefusedAndTheProcessLives) {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver != 0) GTEST_SKIP() << "there is a driver";
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(refusal([] { load(INTAGLIO_PLAN); }),
                AllOf(HasSubstr("loading "), HasSubstr("driver version is insufficient"),
                      Not(HasSubstr(".cpp"))));
  }
  EXPECT_NE(make_runtime(library()), nullptr);
}

using GpuTensorRt = GpuTest;

std::shared_ptr<const TensorRtEngine> engine() {
  auto folder = std::make_shared<EngineFolder>();
  folder->path = fs::path(INTAGLIO_PLAN).parent_path();
  return load_engine(library(), *folder, component_of(fs::file_size(INTAGLIO_PLAN)));
}

TEST_F(GpuTensorRt, EnginesAreSharedWhileTheyAreUsed) {
  const auto first = engine();
  EXPECT_EQ(engine(), first);
}

// Plainly, then while it is recorded, then as a CUDA graph; from the host's memory and the GPU's.
TEST_F(GpuTensorRt, RunsAgainAndAgainOnNewValues) {
  for (const bool on_host : {true, false}) {
    CudaStream stream;
    Tensor x({4, 3}, DType::float32), y({4, 3}, DType::float32);
    const Tensor bound_x = on_host ? x : stream.allocate({4, 3}, DType::float32);
    const Tensor bound_y = on_host ? y : stream.allocate({4, 3}, DType::float32);
    TensorRtGraph graph("double", engine(), 0, stream, {{"x", bound_x}}, {{"y", bound_y}});
    for (int run = 0; run < 4; ++run) {
      for (std::size_t i = 0; i < 12; ++i)
        x.floats()[i] = static_cast<float>(run) + 0.25F * static_cast<float>(i);
      stream.copy(x, bound_x);
      graph.run();
      stream.copy(bound_y, y);
      for (std::size_t i = 0; i < 12; ++i) ASSERT_EQ(y.floats()[i], 2 * x.floats()[i]) << run;
    }
  }
}

// Rows of a tensor begin where TensorRT takes no address.
TEST_F(GpuTensorRt, RunsOnRowsOfTensors) {
  CudaStream stream;
  Tensor x({5, 3}, DType::float32), y({5, 3}, DType::float32);
  for (std::size_t i = 0; i < 15; ++i) x.floats()[i] = static_cast<float>(i);
  const Tensor all_x = stream.allocate({5, 3}, DType::float32);
  const Tensor all_y = stream.allocate({5, 3}, DType::float32);
  stream.copy(x, all_x);
  TensorRtGraph graph("double", engine(), 0, stream, {{"x", all_x.rows(1, 5)}},
                      {{"y", all_y.rows(1, 5)}});
  for (int run = 0; run < 3; ++run) graph.run();
  stream.copy(all_y, y);
  for (std::size_t i = 0; i < 15; ++i)
    EXPECT_EQ(y.floats()[i], i < 3 ? 0.0F : 2.0F * x.floats()[i]);
}

// An error in one request leaves the others alone.
TEST_F(GpuTensorRt, AShapeThatDoesNotFitIsRefusedAndTheNextOneRuns) {
  CudaStream stream;
  const Tensor large({9, 3}, DType::float32);
  EXPECT_THAT(refusal([&] {
                TensorRtGraph("double", engine(), 0, stream, {{"x", large}}, {{"y", large}});
              }),
              HasSubstr("setting the shape"));
  Tensor x({1, 3}, DType::float32), y({1, 3}, DType::float32);
  x.floats()[1] = 1.5F;
  TensorRtGraph("double", engine(), 0, stream, {{"x", x}}, {{"y", y}}).run();
  EXPECT_EQ(y.floats()[1], 3.0F);
}

}  // namespace
}  // namespace intaglio
