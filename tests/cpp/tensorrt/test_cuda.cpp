#include <gmock/gmock.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "backend/cuda_device.h"
#include "backend/cuda_stream.h"
#include "backend/host_stream.h"
#include "backend/tensorrt_backend.h"
#include "core/guided_step.h"
#include "gpu.h"
#include "intaglio/error.h"

namespace intaglio {
namespace {

using testing::HasSubstr;

template <typename T>
T read_at(const std::string& bytes, std::size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// What nvcc put into the library, from its fat binaries: "75-real", and "120-virtual" for PTX.
std::set<std::string> compiled_for(const std::string& library) {
  std::ifstream file(library, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const std::string magic = "\x50\xed\x55\xba\x01";  // and version 1
  std::set<std::string> found;
  for (std::size_t at = bytes.find(magic); at != std::string::npos;
       at = bytes.find(magic, at + 1)) {
    std::size_t entry = at + read_at<std::uint16_t>(bytes, at + 6);
    const std::size_t end = entry + read_at<std::uint64_t>(bytes, at + 8);
    while (entry < end) {
      const bool code = read_at<std::uint16_t>(bytes, entry) == 2;
      found.insert(std::to_string(read_at<std::uint32_t>(bytes, entry + 28)) +
                   (code ? "-real" : "-virtual"));
      entry += read_at<std::uint32_t>(bytes, entry + 4) + read_at<std::uint64_t>(bytes, entry + 8);
    }
  }
  return found;
}

TEST(Cuda, KernelsAreCompiledForTheNamedArchitectures) {
  std::set<std::string> named;
  std::istringstream list(INTAGLIO_ARCHITECTURES);
  for (std::string name; list >> name;) {
    if (name.find('-') == std::string::npos) {
      named.insert(name + "-virtual");
      name += "-real";
    }
    named.insert(name);
  }
  EXPECT_GE(named.size(), 8U);
  EXPECT_EQ(compiled_for(INTAGLIO_LIBRARY), named);
}

// Before the library and the engines, which would help nobody here.
TEST(Cuda, WithoutADriverTheBackendSaysSo) {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver != 0) GTEST_SKIP() << "there is a driver";
  BackendOptions options;
  options.tensorrt_library = "/nowhere";
  for (const std::string device : {"tensorrt", "tensorrt-rtx"}) {
    try {
      make_tensorrt_backend(device, options, Bundle());
      FAIL();
    } catch (const UnavailableError& error) {
      EXPECT_THAT(error.what(), HasSubstr("no NVIDIA driver"));
    }
  }
}

TEST(Cuda, ErrorsBecomeOurs) {
  EXPECT_NO_THROW(check_cuda(cudaSuccess, "a step"));
  EXPECT_THROW(check_cuda(cudaErrorMemoryAllocation, "a step"), OutOfMemoryError);
  try {
    check_cuda(cudaErrorIllegalAddress, "a step");
    FAIL();
  } catch (const UnavailableError& error) {
    EXPECT_THAT(error.what(), HasSubstr("a step failed on the GPU: "));
    EXPECT_THAT(error.what(), HasSubstr("cudaErrorIllegalAddress"));
  }
  EXPECT_EQ(format_bytes(1'500'000), "1.5 MB");
  EXPECT_EQ(format_bytes(23'000'000'000), "23.0 GB");
}

using GpuStream = GpuTest;

Tensor drawn(const Shape& shape, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  Tensor tensor(shape, DType::float32);
  for (float& value : tensor.floats()) value = normal(engine);
  return tensor;
}

Tensor moved(Stream& stream, const Tensor& tensor) {
  Tensor there = stream.allocate(tensor.shape(), tensor.dtype());
  stream.copy(tensor, there);
  return there;
}

std::vector<float> values(Stream& stream, const Tensor& tensor) {
  Tensor host(tensor.shape(), tensor.dtype());
  stream.copy(tensor, host);
  return {host.floats().begin(), host.floats().end()};
}

GuidedStep random_step(Stream& stream, const Update& update, const Shape& shape) {
  GuidedStep step;
  step.combine = {2.5F, 1.25F, true, true, {}, {}};
  step.to_denoised = {false, 0.75F, 0.25F};
  step.update = update;
  unsigned seed = 0;
  for (Tensor* tensor : {&step.conditional, &step.unconditional, &step.degraded, &step.x,
                         &step.denoised, &step.first, &step.second})
    *tensor = moved(stream, drawn(shape, ++seed));
  return step;
}

TEST_F(GpuStream, TheFusedKernelIsTheHostsLoop) {
  const std::vector<Update> updates{EulerUpdate{0.75F, -0.125F}, HeunPredict{0.75F, -0.125F},
                                    HeunCorrect{0.5F, -0.25F}, Dpmpp2mUpdate{0.8F, 0.3F, 0.4F},
                                    DdimUpdate{0.6F, 0.8F, 0.28F, 0.96F}};
  for (const Update& update : updates) {
    for (const std::int64_t size : {1, 255, 256, 257, 100'003}) {
      HostStream host;
      CudaStream gpu;
      const GuidedStep wanted = random_step(host, update, {size});
      const GuidedStep step = random_step(gpu, update, {size});
      host.step(wanted);
      gpu.step(step);
      for (Tensor GuidedStep::* tensor :
           {&GuidedStep::x, &GuidedStep::denoised, &GuidedStep::first, &GuidedStep::second}) {
        const auto ours = values(gpu, step.*tensor), theirs = values(host, wanted.*tensor);
        for (std::size_t i = 0; i < ours.size(); ++i)
          ASSERT_NEAR(ours[i], theirs[i], 1e-6 * (1 + std::abs(theirs[i])))
              << "update " << update.index() << ", element " << i << " of " << size;
      }
    }
  }
}

TEST_F(GpuStream, ABranchThatDidNotRunHasNoMemory) {
  CudaStream gpu;
  GuidedStep step = random_step(gpu, EulerUpdate{0.75F, -0.125F}, {100});
  step.combine = {};
  step.unconditional = Tensor();
  step.degraded = Tensor();
  HostStream host;
  const GuidedStep wanted = [&] {
    GuidedStep same = random_step(host, step.update, {100});
    same.combine = {};
    return same;
  }();
  host.step(wanted);
  gpu.step(step);
  EXPECT_THAT(values(gpu, step.x),
              testing::Pointwise(testing::FloatNear(1e-5F), values(host, wanted.x)));
}

TEST_F(GpuStream, CopiesFillsAndWritesKeep) {
  CudaStream gpu;
  Tensor rows = gpu.allocate({2, 3}, DType::float32);
  EXPECT_EQ(values(gpu, rows), std::vector<float>(6, 0.0F));
  Tensor suppression({3}, DType::float32);
  std::ranges::copy(std::vector<float>{0.0F, 0.5F, 1.0F}, suppression.floats().begin());
  gpu.fill(rows, 7.0F);
  gpu.fill_keep(rows.rows(1, 2), moved(gpu, suppression), 0.25F);
  const Tensor again = moved(gpu, rows);  // from the GPU to the GPU
  EXPECT_EQ(values(gpu, again), (std::vector<float>{7.0F, 7.0F, 7.0F, 1.0F, 0.625F, 0.25F}));
}

// A tensor may outlive the stream that gave it.
TEST_F(GpuStream, MemoryKeepsItsStream) {
  Tensor tensor;
  {
    CudaStream gpu;
    tensor = gpu.allocate({1000}, DType::float32);
    gpu.wait();
  }
  tensor = Tensor();
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_F(GpuStream, TooMuchSaysWhatIsNeededAndFree) {
  CudaStream gpu;
  try {
    gpu.allocate({std::int64_t{1} << 20, std::int64_t{1} << 18}, DType::float32);
    FAIL();
  } catch (const OutOfMemoryError& error) {
    EXPECT_THAT(error.what(), HasSubstr("needs 1099.5 GB of the GPU's memory, and "));
    EXPECT_THAT(error.what(), HasSubstr(" are free"));
  }
  EXPECT_NO_THROW(gpu.allocate({1000}, DType::float32));
}

}  // namespace
}  // namespace intaglio
