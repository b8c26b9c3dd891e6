// What a graph is given where the loop runs in a device's memory, which here is the host's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "backend/device_memory.h"
#include "backend/host_stream.h"
#include "intaglio/batch.h"
#include "manifest_json.h"

namespace intaglio {
namespace {

class HostMemory : public DeviceMemory {
 public:
  Tensor allocate(const Shape& shape, DType dtype) override { return {shape, dtype}; }
  void copy(const Tensor& from, Tensor to) override {
    std::memcpy(to.data(), from.data(), from.bytes());
  }
  void gather(const GatherRows& rows) override {
    std::vector<Tensor> images;
    for (const GatherRows::Member& member : rows.members)
      for (std::int64_t image = 0; image < member.x.dim(0); ++image)
        images.push_back(member.x.rows(image, image + 1));
    std::int64_t row = 0;
    for (const std::int64_t image : rows.images.int64s()) {
      copy(images.at(static_cast<std::size_t>(image)), Tensor(rows.latent).rows(row, row + 1));
      ++row;
    }
  }
  void step(const DeviceStep& step) override { copy(step.from.x, step.to.x); }
  StreamCounts counts() const override { return {}; }
};

// A row before the fork.
struct BaseRow {
  float latent, text;  // the first number of each
  std::int64_t anchor;
};

struct Seen {
  std::vector<BaseRow> base;
  std::vector<std::int64_t> branch;
};

class SeenGraph : public BoundGraph {
 public:
  SeenGraph(const std::vector<Binding>& inputs, Seen& seen) : inputs_(inputs), seen_(seen) {}
  void run() override {
    const auto input = [&](Role role) {
      return std::ranges::find(inputs_, role, &Binding::role)->tensor;
    };
    const Tensor anchor = input(Role::anchor), branch = input(Role::branch);
    const Tensor latent = input(Role::latent), text = input(Role::text);
    seen_ = {};
    for (std::int64_t row = 0; row < anchor.dim(0); ++row)
      seen_.base.push_back({.latent = latent.rows(row, row + 1).floats().front(),
                            .text = text.rows(row, row + 1).floats().front(),
                            .anchor = anchor.int64s()[static_cast<std::size_t>(row)]});
    seen_.branch.assign(branch.int64s().begin(), branch.int64s().end());
  }

 private:
  std::vector<Binding> inputs_;
  Seen& seen_;
};

class SeeingBackend : public Backend {
 public:
  struct Loaded : Session {
    explicit Loaded(Seen& noted) : seen(noted) {}
    std::unique_ptr<BoundGraph> bind(const std::vector<Binding>& inputs,
                                     const std::vector<Binding>&) const override {
      return std::make_unique<SeenGraph>(inputs, seen);
    }
    Seen& seen;
  };
  std::unique_ptr<Session> load(const Bundle&, const Graph&) const override {
    return std::make_unique<Loaded>(seen);
  }
  std::unique_ptr<Stream> make_stream() const override { return std::make_unique<HostStream>(); }
  std::shared_ptr<DeviceMemory> make_memory() const override {
    return std::make_shared<HostMemory>();
  }
  std::string description() const override { return "a stand-in"; }

  mutable Seen seen;
};

constexpr float kNegative = -1;

GenerateOptions request(float text, std::vector<std::uint64_t> seeds, float cfg_scale) {
  GenerateOptions options;
  options.prompt_embeds.emplace();
  for (auto* part : {&options.prompt_embeds->positive, &options.prompt_embeds->negative.emplace()})
    *part = {Tensor({1, 11, 16}, DType::float32), {}, Tensor({1, 5}, DType::float32)};
  std::ranges::fill(options.prompt_embeds->positive.text.floats(), text);
  std::ranges::fill(options.prompt_embeds->negative->text.floats(), kNegative);
  options.seeds = std::move(seeds);
  options.cfg_scale = cfg_scale;
  options.cfg_window.emplace();
  options.dg_scale = 1.0;
  options.dg_window.emplace();
  return options;
}

// Rows of D_0 and D_m are quantised as differences from the row of D_c of the same image.
TEST(DeviceExecutor, NamesTheRowOfDcAsTheAnchorOfEachRow) {
  auto backend = std::make_shared<SeeingBackend>();
  Batch batch(Pipeline(drawable("anchored"), backend), 5);
  batch.add(request(1, {3, 4}, 2));
  batch.add(request(2, {5}, 1));  // without D_0
  batch.add(request(3, {6}, 2));
  batch.step();
  const Seen& seen = backend->seen;
  ASSERT_GE(seen.base.size(), 7U);  // D_0 of three images, D_c of four; others repeat the last
  std::set<float> texts;
  for (const BaseRow& row : seen.base) {
    const auto index = static_cast<std::size_t>(row.anchor);
    ASSERT_LT(index, seen.base.size());
    const BaseRow& anchor = seen.base[index];
    EXPECT_EQ(anchor.latent, row.latent);
    EXPECT_NE(anchor.text, kNegative);
    EXPECT_EQ(anchor.anchor, row.anchor);
    EXPECT_TRUE(row.text == kNegative || anchor.text == row.text);
    texts.insert(row.text);
  }
  EXPECT_EQ(texts, (std::set<float>{kNegative, 1, 2, 3}));
  // After the fork, D_m continues its D_c.
  ASSERT_GE(seen.branch.size(), seen.base.size() + 4);
  for (std::size_t row = seen.base.size(); row < seen.branch.size(); ++row)
    EXPECT_NE(seen.base.at(static_cast<std::size_t>(seen.branch[row])).text, kNegative);
}

}  // namespace
}  // namespace intaglio
