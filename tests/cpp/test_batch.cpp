// Compares members of a batch with generate(), on graphs that compute each row by itself, and
// counts what each step does with its stream and its graphs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "backend/host_stream.h"
#include "intaglio/batch.h"
#include "manifest_json.h"

namespace intaglio {
namespace {

float mean(const Tensor& tensor) {
  const auto values = tensor.floats();
  return std::accumulate(values.begin(), values.end(), 0.0F) / static_cast<float>(values.size());
}

// What was done with the graphs.
struct Asked {
  int binds = 0;
  std::vector<std::int64_t> rows;  // of each run of the transformer
  bool fails = false;              // whether the next run fails
  bool bind_fails = false;         // whether the next bind fails
};

// Predicts half the latent plus a number that depends on the timestep and text of the row and on
// latent and text of its anchor, and is smaller where keep is 0.
class RowModel : public BoundGraph {
 public:
  RowModel(const std::vector<Binding>& inputs, const std::vector<Binding>& outputs, Asked& asked)
      : asked_(asked), prediction_(outputs.front().tensor) {
    for (const auto& [role, tensor] : inputs) inputs_[role] = tensor;
  }

  void run() override {
    if (std::exchange(asked_.fails, false)) throw OutOfMemoryError("no room");
    asked_.rows.push_back(prediction_.dim(0));
    for (std::int64_t row = 0; row < prediction_.dim(0); ++row) {
      const auto at = static_cast<std::size_t>(row);
      const auto from = inputs_.contains(Role::branch) ? inputs_[Role::branch].int64s()[at] : row;
      const float keep =
          inputs_.contains(Role::keep) ? mean(inputs_[Role::keep].rows(row, row + 1)) : 1.0F;
      const auto anchor = inputs_.contains(Role::anchor)
                              ? inputs_[Role::anchor].int64s()[static_cast<std::size_t>(from)]
                              : from;
      const float text = mean(inputs_[Role::text].rows(from, from + 1)) +
                         0.5F * mean(inputs_[Role::text].rows(anchor, anchor + 1)) +
                         0.5F * mean(inputs_[Role::latent].rows(anchor, anchor + 1));
      const float number =
          (text + inputs_[Role::timestep].rows(from, from + 1).floats().front() / 1e3F) *
          (0.5F + 0.5F * keep);
      std::ranges::transform(inputs_[Role::latent].rows(from, from + 1).floats(),
                             prediction_.rows(row, row + 1).floats().begin(),
                             [&](float x) { return 0.5F * x + number; });
    }
  }

 private:
  Asked& asked_;
  std::map<Role, Tensor> inputs_;
  Tensor prediction_;
};

struct Nothing : BoundGraph {
  void run() override {}
};

class RowBackend : public Backend {
 public:
  struct Loaded : Session {
    Loaded(bool runs_in_loop, Asked& noted) : loop(runs_in_loop), asked(noted) {}
    std::unique_ptr<BoundGraph> bind(const std::vector<Binding>& inputs,
                                     const std::vector<Binding>& outputs) const override {
      if (!loop) return std::make_unique<Nothing>();
      ++asked.binds;
      if (std::exchange(asked.bind_fails, false)) throw OutOfMemoryError("no room");
      return std::make_unique<RowModel>(inputs, outputs, asked);
    }
    bool loop;
    Asked& asked;
  };

  std::unique_ptr<Session> load(const Bundle&, const Graph& graph) const override {
    return std::make_unique<Loaded>(graph.path.starts_with("transformer"), asked);
  }
  std::unique_ptr<Stream> make_stream() const override {
    auto stream = std::make_unique<HostStream>();
    last = stream.get();
    return stream;
  }
  std::string description() const override { return "a stand-in"; }

  mutable Asked asked;
  mutable const Stream* last = nullptr;
};

GenerateOptions request(float text, std::uint64_t seed, int steps = 4) {
  GenerateOptions options;
  options.prompt_embeds.emplace();
  for (auto* part : {&options.prompt_embeds->positive, &options.prompt_embeds->negative.emplace()})
    *part = {Tensor({1, 11, 16}, DType::float32), {}, Tensor({1, 5}, DType::float32)};
  std::ranges::fill(options.prompt_embeds->positive.text.floats(), text);
  options.seeds = {seed};
  options.steps = steps;
  options.cfg_window.emplace();
  return options;
}

class BatchOf : public testing::TestWithParam<const char*> {
 protected:
  std::shared_ptr<RowBackend> backend = std::make_shared<RowBackend>();
  Pipeline pipeline{drawable(GetParam()), backend};

  bool forked() const { return std::string(GetParam()) != "dual"; }

  void expect_alone(const BatchStep& step, const GenerateOptions& options) {
    const Generation together = step.finish(), alone = pipeline.generate(options);
    EXPECT_THAT(together.latents.floats(), testing::ElementsAreArray(alone.latents.floats()));
    EXPECT_EQ(together.base_rows, alone.base_rows);
    EXPECT_EQ(together.forked_rows, alone.forked_rows);
  }

  // Runs steps until no member is left.
  static std::map<std::int64_t, BatchStep> run(Batch& batch) {
    std::map<std::int64_t, BatchStep> ended;
    while (batch.size() > 0) {
      for (BatchStep& step : batch.step())
        if (step.done || step.error) ended[step.id] = std::move(step);
    }
    return ended;
  }
};

TEST_P(BatchOf, MembersOfEveryKindGetWhatTheyGetAlone) {
  std::vector<GenerateOptions> all{request(0.1F, 1),    request(0.2F, 2, 7), request(0.3F, 3, 5),
                                   request(0.4F, 4, 9), request(0.5F, 5, 3), request(0.6F, 6),
                                   request(0.7F, 7, 9), request(0.8F, 8, 9)};
  all[1].cfg_window = Window{0, 0.5};
  all[1].dg_window = Window{0.3, 1};
  all[2].cfg_scale = 1.0;
  all[2].dg_scale = 0.0;
  all[3].scheduler = "dpmpp-2m";
  all[3].reuse_interval = 2.0;
  all[4].scheduler = "heun";
  all[4].seeds = {7, 8};
  all[5].ma_keep = Ramp{0.9, 0.2};
  all[6].skip_interval = 2.0;
  all[6].skip_tolerance = 1e-3;  // some of the steps run after all
  all[7].skip_interval = 3.0;
  all[7].reuse_interval = 2.0;
  all[7].skip_tolerance = 10;
  for (const bool late : {false, true}) {
    Batch batch(pipeline, 9);
    std::map<std::int64_t, BatchStep> ended;
    for (const GenerateOptions& options : all) {
      batch.add(options);
      if (!late) continue;
      for (BatchStep& step : batch.step())
        if (step.done) ended[step.id] = std::move(step);
    }
    ended.merge(run(batch));
    ASSERT_EQ(ended.size(), all.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(i);
      expect_alone(ended.at(static_cast<std::int64_t>(i)), all[i]);
    }
  }
}

// Such a member has the rows of D_c as its latents, as in generate().
TEST_P(BatchOf, MembersThatFillTheBatchFollowEachOther) {
  std::vector<GenerateOptions> all{request(0.1F, 1), request(0.2F, 2, 5), request(0.3F, 3)};
  for (GenerateOptions& options : all) options.seeds.push_back(9);
  all[1].scheduler = "heun";
  all[1].dg_scale = 0.0;
  all[2].reuse_interval = 2.0;
  Batch batch(pipeline, 2);
  std::map<std::int64_t, BatchStep> ended;
  for (const GenerateOptions& options : all) {
    batch.add(options);
    EXPECT_FALSE(batch.accepts(request(0, 1)));
    ended.merge(run(batch));
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    expect_alone(ended.at(static_cast<std::int64_t>(i)), all[i]);
  }
}

TEST_P(BatchOf, AMemberThatCouldNotBeAddedLeavesNoInputsBehind) {
  GenerateOptions failing = request(0.1F, 1), next = request(0.9F, 1);
  for (GenerateOptions* options : {&failing, &next}) options->seeds.push_back(9);
  Batch batch(pipeline, 2);
  backend->asked.bind_fails = true;
  EXPECT_THROW(batch.add(failing), OutOfMemoryError);
  const std::int64_t id = batch.add(next);
  expect_alone(run(batch).at(id), next);
}

TEST_P(BatchOf, AStepIsOneRunOfTheRowsThatHaveWeight) {
  Batch batch(pipeline);
  GenerateOptions plain = request(0, 1);
  plain.cfg_scale = 1.0;
  plain.dg_scale = 0.0;
  batch.add(plain);
  batch.add(request(0, 2));
  batch.step();
  // One request runs D_0 and D_m, and both run D_c.
  const std::vector<std::int64_t> rows =
      forked() ? std::vector<std::int64_t>{4} : std::vector<std::int64_t>{3, 1};
  EXPECT_EQ(backend->asked.rows, rows);
}

TEST_P(BatchOf, OnlyMembersThatMoveAreCopiedAndBoundAnew) {
  Batch batch(pipeline);
  const Stream& stream = *backend->last;
  const auto counted = [&] {
    const StreamCounts before = stream.counts();
    const int binds = backend->asked.binds;
    batch.step();
    return std::pair(stream.counts() - before, backend->asked.binds - binds);
  };
  // A step copies x to D_0 and to D_c, and the estimate to the host. The first step also copies the
  // text and the pooled text of each branch.
  constexpr std::int64_t each = 3, text = 4;
  batch.add(request(0, 1, 9));
  EXPECT_EQ(counted().first.copies, each + text + (forked() ? 1 : 0)) << "and `branch`";
  const auto [steady, bound] = counted();
  EXPECT_EQ(steady.copies, each);
  EXPECT_EQ(steady.allocations, 0);
  EXPECT_EQ(bound, 0);
  const std::int64_t second = batch.add(request(0, 2, 9));
  EXPECT_EQ(counted().second, forked() ? 1 : 2);
  EXPECT_EQ(counted().first.copies, 2 * each);
  batch.remove(second);
  EXPECT_EQ(counted().second, 0) << "as many rows as before";
  EXPECT_EQ(counted().first.copies, each);
}

// A member that skips steps takes no rows for them, and others do not run without it meanwhile.
TEST_P(BatchOf, SkippedStepsEndWithTheEvaluationBeforeThem) {
  GenerateOptions skipping = request(0.1F, 1, 8);
  skipping.skip_interval = 3.0;
  skipping.skip_tolerance = 10;
  Batch batch(pipeline);
  const std::int64_t id = batch.add(skipping), other = batch.add(request(0.2F, 2, 4));
  std::vector<std::vector<int>> steps;  // of the member, by calls
  std::vector<int> skipped;
  std::map<std::int64_t, BatchStep> ended;
  while (batch.size() > 0) {
    steps.emplace_back();
    for (BatchStep& step : batch.step()) {
      if (step.id == id) steps.back().push_back(step.step);
      if (step.id == id && step.skipped) skipped.push_back(step.step);
      if (step.done) ended[step.id] = std::move(step);
    }
  }
  EXPECT_EQ(steps, (std::vector<std::vector<int>>{{0}, {1}, {2, 3, 4}, {5, 6, 7}}));
  EXPECT_EQ(skipped, (std::vector{3, 4, 6, 7}));
  const std::size_t graphs = forked() ? 1 : 2;
  EXPECT_EQ(backend->asked.rows.size(), 4 * graphs);
  EXPECT_EQ(std::ranges::count(backend->asked.rows, forked() ? 6 : 4), 4) << "rows of both";
  const Generation generation = ended.at(id).finish();
  EXPECT_EQ(generation.evaluations, 4);
  EXPECT_EQ(generation.skipped_steps, skipped);
  EXPECT_EQ(generation.step_seconds.size(), 8U);
  EXPECT_GT(generation.largest_distance, 0);
  EXPECT_EQ(ended.at(other).finish().evaluations, 4);
  expect_alone(ended.at(id), skipping);
}

// Past the tolerance, steps run until the line holds again.
TEST_P(BatchOf, AStepIsNotSkippedWhereTheLineIsTooFarOff) {
  GenerateOptions options = request(0.1F, 1, 12);
  options.skip_interval = 2.0;
  options.skip_tolerance = 10;
  const Generation all = pipeline.generate(options);
  EXPECT_EQ(all.skipped_steps, (std::vector{3, 5, 7, 9, 11}));
  options.skip_tolerance = all.largest_distance * 0.999;
  const Generation fewer = pipeline.generate(options);
  EXPECT_LT(fewer.skipped_steps.size(), all.skipped_steps.size());
  EXPECT_EQ(fewer.evaluations + fewer.skipped_steps.size(), 12U);
  options.skip_tolerance = 1e-12;
  const Generation none = pipeline.generate(options);
  EXPECT_THAT(none.skipped_steps, testing::IsEmpty());
  EXPECT_EQ(none.largest_distance, 0);
  options.skip_interval.reset();
  options.skip_tolerance.reset();
  EXPECT_THAT(none.latents.floats(),
              testing::ElementsAreArray(pipeline.generate(options).latents.floats()));
}

TEST_P(BatchOf, AMemberThatBecomesNaNIsTheOnlyOneThatFails) {
  Batch batch(pipeline);
  GenerateOptions bad = request(std::numeric_limits<float>::max(), 1);
  bad.cfg_scale = 1e6;
  EXPECT_THROW(pipeline.generate(bad), InputError);
  const std::int64_t failing = batch.add(bad), other = batch.add(request(0.2F, 2));
  const auto ended = run(batch);
  ASSERT_TRUE(ended.at(failing).error);
  EXPECT_EQ(ended.at(failing).step, 0) << "seen in its first step";
  EXPECT_FALSE(ended.at(failing).done);
  EXPECT_THAT(ended.at(failing).error->what(), testing::HasSubstr("NaN"));
  EXPECT_THROW(ended.at(failing).preview(), Error);
  EXPECT_THROW(ended.at(failing).finish(), Error);
  expect_alone(ended.at(other), request(0.2F, 2));
}

TEST_P(BatchOf, ARunThatFailsLeavesMembersAsTheyWere) {
  Batch batch(pipeline);
  GenerateOptions options = request(0.1F, 1);
  options.reuse_interval = 2.0;
  const std::int64_t id = batch.add(options);
  batch.step();
  backend->asked.fails = true;
  EXPECT_THROW(batch.step(), OutOfMemoryError);
  EXPECT_EQ(batch.size(), 1U);
  expect_alone(run(batch).at(id), options);
}

TEST_P(BatchOf, StepsNeedNeitherBatchNorPipeline) {
  std::map<std::int64_t, BatchStep> ended;
  {
    const Pipeline other(drawable(GetParam()), backend);
    Batch batch(other);
    batch.add(request(0.1F, 1));
    ended = run(batch);
  }
  EXPECT_EQ(ended.at(0).preview().size(), 1U);
  expect_alone(ended.at(0), request(0.1F, 1));
}

TEST_P(BatchOf, WhatDoesNotFitIsRefusedByName) {
  Batch batch(pipeline, 2);
  batch.add(request(0, 1));
  const auto refused = [&](const GenerateOptions& options, const char* says) {
    EXPECT_FALSE(batch.accepts(options));
    EXPECT_THAT([&] { batch.add(options); },
                testing::ThrowsMessage<UsageError>(testing::HasSubstr(says)));
  };
  GenerateOptions options = request(0, 1);
  options.seeds = {1, 2};
  refused(options, "ask for 2 images where the batch has room for 1 of 2");
  options = request(0, 1);
  options.width = 64;
  refused(options, "64x64 pixels where the batch draws 48x64");
  options = request(0, 1);
  options.ma_channels = {4};
  refused(options, "--ma-channels");
  EXPECT_TRUE(batch.accepts(request(0, 1)));
  options.steps = 0;
  EXPECT_THROW(batch.accepts(options), UsageError);
  EXPECT_EQ(batch.size(), 1U);
  EXPECT_THROW(batch.remove(7), UsageError);
  EXPECT_THROW(Batch(pipeline, 0), UsageError);
}

INSTANTIATE_TEST_SUITE_P(Layouts, BatchOf, testing::Values("forked", "dual", "anchored"));

TEST(Batch, ABundleWithOneScaleForAllRowsRunsOneRequestAtATime) {
  Bundle bundle = drawable("forked");
  bundle.quantized = "int8-dynamic";
  const Pipeline pipeline(std::move(bundle), std::make_shared<RowBackend>());
  Batch batch(pipeline);
  const std::int64_t first = batch.add(request(0, 1));
  EXPECT_FALSE(batch.accepts(request(0, 2)));
  EXPECT_THAT([&] { batch.add(request(0, 2)); },
              testing::ThrowsMessage<UsageError>(testing::HasSubstr("one request at a time")));
  batch.remove(first);
  EXPECT_TRUE(batch.accepts(request(0, 2)));
}

}  // namespace
}  // namespace intaglio
