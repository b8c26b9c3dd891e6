// Counts what the denoising loop allocates, in operator new of the whole process.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "backend/host_stream.h"
#include "intaglio/pipeline.h"
#include "manifest_json.h"

namespace {
std::atomic<std::int64_t> allocations = 0;

void* counted(std::size_t size, std::size_t alignment) {
  ++allocations;
  return std::aligned_alloc(alignment, (size + alignment) / alignment * alignment);
}
}  // namespace

// The other forms of new and delete call these. They are not inlined, since GCC would see that
// free() is called on memory of new, and warn.
[[gnu::noinline]] void* operator new(std::size_t size) {
  if (void* memory = counted(size, alignof(std::max_align_t))) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment,
                                     const std::nothrow_t&) noexcept {
  return counted(size, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  if (void* memory = counted(size, static_cast<std::size_t>(alignment))) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}

namespace intaglio {
namespace {

// Fills every output with 0.5, and records how much had been allocated when it ran.
class Recorder : public Backend {
 public:
  struct Run : BoundGraph {
    Run(std::vector<Binding> bound, std::vector<std::int64_t>& counts)
        : outputs(std::move(bound)), seen(counts) {}
    void run() override {
      for (Binding& output : outputs) std::ranges::fill(output.tensor.floats(), 0.5F);
      seen.push_back(allocations);
    }
    std::vector<Binding> outputs;
    std::vector<std::int64_t>& seen;
  };
  struct Loaded : Session {
    explicit Loaded(std::vector<std::int64_t>& counts) : seen(counts) {}
    std::unique_ptr<BoundGraph> bind(const std::vector<Binding>&,
                                     const std::vector<Binding>& outputs) const override {
      return std::make_unique<Run>(outputs, seen);
    }
    std::vector<std::int64_t>& seen;
  };

  std::unique_ptr<Session> load(const Bundle&, const Graph& graph) const override {
    return std::make_unique<Loaded>(graph.path.starts_with("transformer") ? loop : rest);
  }
  std::unique_ptr<Stream> make_stream() const override { return std::make_unique<HostStream>(); }
  std::string description() const override { return "a stand-in"; }

  mutable std::vector<std::int64_t> loop, rest;
};

struct Setting {
  const char* layout;
  const char* scheduler;
  bool called_back;
  bool conditioned;
  bool reused;
  bool skipped;
  int steps;
  std::size_t second;  // the run of the transformer's graphs with which the second step begins
};

class Loop : public testing::TestWithParam<Setting> {};

TEST_P(Loop, AllocatesNothingAfterItsFirstStep) {
  const auto backend = std::make_shared<Recorder>();
  backend->loop.reserve(1000);
  const Pipeline pipeline(drawable(GetParam().layout, GetParam().conditioned), backend);
  GenerateOptions options;
  options.prompt_embeds.emplace();
  for (auto* part : {&options.prompt_embeds->positive, &options.prompt_embeds->negative.emplace()})
    *part = {Tensor({1, 11, 16}, DType::float32), {}, Tensor({1, 5}, DType::float32)};
  options.scheduler = GetParam().scheduler;
  options.steps = GetParam().steps;
  if (GetParam().reused) options.reuse_interval = 2;
  if (GetParam().skipped) options.skip_interval = 2;
  options.cfg_window = Window{0, 0.6};  // branches come and go
  options.ma_keep = Ramp{0.75, 0};      // keep is filled again in every step
  float seen = 0;
  StepCallback on_step;
  if (GetParam().called_back) {
    on_step = [&](const Step& step) {
      seen += step.latents().floats().front();
      return true;
    };
  }
  pipeline.generate(options, on_step);

  const auto& counts = backend->loop;
  ASSERT_GE(counts.size(),
            static_cast<std::size_t>(GetParam().steps / (GetParam().skipped ? 2 : 1)));
  EXPECT_GT(counts.front(), 0);
  EXPECT_EQ(counts.back() - counts.at(GetParam().second), 0)
      << "in " << counts.size() << " runs of graphs";
}

INSTANTIATE_TEST_SUITE_P(
    Settings, Loop,
    testing::Values(Setting{"forked", "euler", false, false, false, false, 12, 1},
                    Setting{"forked", "euler", true, false, false, false, 12, 1},
                    Setting{"forked", "euler", true, false, true, false, 12, 1},
                    Setting{"forked", "euler", true, false, true, true, 12, 1},
                    Setting{"forked", "heun", true, false, false, false, 12, 2},
                    Setting{"forked", "dpmpp-2m", false, false, false, true, 12, 1},
                    Setting{"dual", "euler", true, false, false, false, 12, 2},
                    // There are two parts of modulations, and the first is
                    // computed ahead of the loop.
                    Setting{"forked", "euler", true, true, false, false, 40, 2},
                    Setting{"forked", "heun", true, true, true, true, 12, 3}));

TEST(Allocations, AreCounted) {
  const std::int64_t before = allocations;
  const Tensor tensor({3}, DType::float32);
  EXPECT_GT(allocations, before);
  const std::int64_t made = allocations;
  const Tensor copy = tensor;
  EXPECT_EQ(allocations, made) << "a copy shares its memory and shape";
  EXPECT_EQ(copy.data(), tensor.data());
}

}  // namespace
}  // namespace intaglio
