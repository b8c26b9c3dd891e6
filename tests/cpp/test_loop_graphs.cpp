// The graphs that a provider runs in the loop, on ONNX Runtime's CPU provider, against the
// functions that run in the host's memory.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include "backend/loop_graphs.h"
#include "backend/onnxruntime_library.h"
#include "backend/ort_value.h"
#include "backend/providers.h"
#include "core/guided_step.h"
#include "core/step_table.h"
#include "platform/shared_library.h"

namespace intaglio {
namespace {

constexpr std::int64_t kImages = 2, kSize = 37;

class LoopGraphs : public testing::Test {
 protected:
  void SetUp() override {
    const char* library = std::getenv("INTAGLIO_TEST_ONNXRUNTIME");
    if (!library) GTEST_SKIP() << "INTAGLIO_TEST_ONNXRUNTIME names no library of ONNX Runtime";
    load_onnxruntime(library);
    // The library's copy of ONNX Runtime's C++ interface is its own.
    void* handle = platform::load_library(library);
    const auto base =
        reinterpret_cast<const OrtApiBase* (*)()>(platform::find_function(handle, "OrtGetApiBase"));
    Ort::InitApi(base()->GetApi(ORT_API_VERSION));
  }
};

using Tensors = std::map<std::string, Tensor>;

void run(GraphBuilder& graph, const Tensors& inputs, const Tensors& outputs) {
  Ort::Session session = graph.open(onnxruntime_environment(), Ort::SessionOptions());
  Ort::IoBinding binding(session);
  for (const auto& [name, tensor] : inputs) bind_input(binding, name, tensor);
  for (const auto& [name, tensor] : outputs) bind_output(binding, name, tensor);
  session.Run(Ort::RunOptions(), binding);
}

Tensor drawn(unsigned seed, Shape shape = {kImages, kSize}) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  Tensor tensor(std::move(shape), DType::float32);
  for (float& value : tensor.floats()) value = normal(engine);
  return tensor;
}

Tensor indices(const std::vector<std::int64_t>& values) {
  Tensor tensor({static_cast<std::int64_t>(values.size())}, DType::int64);
  std::ranges::copy(values, tensor.int64s().begin());
  return tensor;
}

double relative_error(const Tensor& got, const Tensor& want) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < want.floats().size(); ++i) {
    const double wanted = want.floats()[i];
    difference += std::pow(got.floats()[i] - wanted, 2);
    size += wanted * wanted;
  }
  return difference == 0 ? 0 : std::sqrt(difference / size);
}

GuidedStep random_step(const Update& update, bool velocity, const Combine& combine,
                       const GuidedLine& line, const Shape& shape = {kImages, kSize}) {
  return {
      .combine = combine,
      .line = line,
      .to_denoised = {.velocity = velocity, .sigma = 0.75F, .alpha = 0.25F},
      .update = update,
      .conditional = drawn(1, shape),
      .unconditional = drawn(2, shape),
      .degraded = drawn(3, shape),
      .term_mask = {},
      .x = drawn(4, shape),
      .denoised = drawn(0, shape),
      .previous_denoised = drawn(5, shape),
      .previous_x = drawn(6, shape),
      .older_denoised = std::holds_alternative<UnipcUpdate>(update) ? drawn(17, shape) : Tensor(),
      .noise = std::holds_alternative<NoisyUpdate>(update) ? drawn(18, shape) : Tensor(),
      .newer_unconditional = drawn(7, shape),
      .older_unconditional = drawn(8, shape),
      .newer_degraded = drawn(9, shape),
      .older_degraded = drawn(10, shape),
      .newer_guided = drawn(13, shape),
      .older_guided = drawn(14, shape),
      .momentum = combine.rule.has_momentum() ? drawn(15, shape) : Tensor(),
      .previous_guided = combine.correction.prev != 0 ? drawn(16, shape) : Tensor(),
      .distance = Tensor({kImages}, DType::float32)};
}

// Returns what a step reads and writes beside the predictions.
Tensors state_of(const GuidedStep& step) {
  Tensors state{{"x", step.x},
                {"denoised", step.denoised},
                {"previous_denoised", step.previous_denoised},
                {"previous_x", step.previous_x},
                {"newer_unconditional", step.newer_unconditional},
                {"older_unconditional", step.older_unconditional},
                {"newer_degraded", step.newer_degraded},
                {"older_degraded", step.older_degraded},
                {"newer_guided", step.newer_guided},
                {"older_guided", step.older_guided}};
  if (step.older_denoised.defined()) state["older_denoised"] = step.older_denoised;
  if (step.combine.rule.has_momentum()) state["momentum"] = step.momentum;
  if (step.combine.correction.prev != 0) state["previous_guided"] = step.previous_guided;
  return state;
}

void add_picture(const Kept& kept, Tensors& inputs) {
  if (!kept.drawn.defined()) return;
  inputs["drawn"] = kept.drawn;
  inputs["kept_clean"] = kept.clean;
  inputs["kept_noise"] = kept.noise;
}

StepForm form_of(const GuidedStep& step) {
  const CfgRule& rule = step.combine.rule;
  const Correction& correction = step.combine.correction;
  return {.rank = step.x.shape().size(),
          .unconditional_cache = true,
          .degraded_cache = true,
          .guided_cache = true,
          .scales_tokens = step.combine.token_size > 0,
          .term_mask = step.term_mask.defined(),
          .corrects = step.older_denoised.defined(),
          .noise = step.noise.defined(),
          .rule = rule.kind,
          .momentum = rule.has_momentum(),
          .rescales = rule.rescale > 0,
          .normalizes = rule.normalization > 0,
          .tag = correction.tag != 1,
          .previous = correction.prev != 0,
          .kept = step.kept.drawn.defined()};
}

void expect_equal(const GuidedStep& step) {
  // Rows of two requests: D_0, D_c and D_m of ours are rows 1 and 2, 4 and 5, 7 and 8.
  Shape shape = step.x.shape();
  shape.front() = 9;
  Tensor prediction = drawn(11, shape);
  const auto put = [&](const Tensor& from, std::int64_t first) {
    Tensor rows = prediction.rows(first, first + kImages);
    std::ranges::copy(from.floats(), rows.floats().begin());
  };
  put(step.unconditional, 1);
  put(step.conditional, 4);
  put(step.degraded, 7);
  Tensor table = drawn(12, {3, kStepColumns});  // the rows of other evaluations do not matter
  write_step({.combine = step.combine,
              .line = step.line,
              .to_denoised = step.to_denoised,
              .update = step.update,
              .left = step.kept.level},
             table.rows(1, 2).floats().data());
  Tensor position({1}, DType::float32);
  position.floats().front() = 1;
  Tensors inputs{{"prediction", prediction},
                 {"degraded_prediction", prediction},
                 {"unconditional", indices({1, 2})},
                 {"conditional", indices({4, 5})},
                 {"degraded", indices({7, 8})},
                 {"table", table},
                 {"position", position}};
  if (step.term_mask.defined()) inputs["term_mask"] = step.term_mask;
  const Tensors state = state_of(step);
  Tensors outputs{{"position_to", Tensor({1}, DType::float32)},
                  {"distance", Tensor({kImages}, DType::float32)}};
  for (const auto& [name, tensor] : state) {
    outputs[name + "_to"] = Tensor(tensor.shape(), DType::float32);
    if (name != "denoised") inputs[name] = tensor.clone();
  }
  if (step.noise.defined()) inputs["noise"] = step.noise;
  add_picture(step.kept, inputs);
  GraphBuilder graph;
  build_step(graph, form_of(step));
  run(graph, inputs, outputs);
  run_on_host(step);
  for (const auto& [name, tensor] : state)
    EXPECT_LT(relative_error(outputs.at(name + "_to"), tensor), 1e-6) << name;
  // A prediction of zero is infinitely far from the line, or nearly so.
  if (step.line.compared && !step.line.skipped && !step.combine.zero) {
    EXPECT_LT(relative_error(outputs.at("distance"), step.distance), 1e-6);
  }
  EXPECT_EQ(outputs.at("position_to").floats().front(), 2);
}

TEST_F(LoopGraphs, StepIsTheHosts) {
  const std::vector<Update> updates{EulerUpdate{0.75F, -0.125F},
                                    HeunPredict{0.75F, -0.125F},
                                    HeunCorrect{0.75F, 0.5F, -0.25F},
                                    Dpmpp2mUpdate{0.8F, 0.3F, 0.4F},
                                    DdimUpdate{0.6F, 0.8F, 0.28F, 0.96F},
                                    NoisyUpdate{{0.5F, 0.3F, 0.4F}, 0.6F},
                                    UnipcUpdate{{0, 0.9F, 0.2F, 0.3F, -0.1F}, {0.8F, 0.3F, 0.4F}}};
  const Delta fresh, reused{.reused = true, .slope = 0.5F};
  for (const Update& update : updates) {
    for (const bool velocity : {true, false}) {
      for (const auto& [unconditional, degraded] :
           {std::pair{fresh, fresh}, {reused, fresh}, {reused, reused}}) {
        SCOPED_TRACE("update " + std::to_string(update.index()) + (velocity ? " velocity" : "") +
                     (unconditional.reused ? " D_0 reused" : "") +
                     (degraded.reused ? " D_m reused" : ""));
        expect_equal(random_step(update, velocity,
                                 {.lambda = 2.5F,
                                  .w = 1.25F,
                                  .has_unconditional = true,
                                  .has_degraded = true,
                                  .unconditional_delta = unconditional,
                                  .degraded_delta = degraded},
                                 {.compared = true, .slope = 0.75F}));
      }
    }
  }
}

TEST_F(LoopGraphs, TokensAreScaledToTheNormOfTheConditional) {
  const EulerUpdate update{0.75F, -0.125F};
  for (const bool unconditional : {true, false}) {
    Combine combine{.lambda = 2.5F,
                    .w = 1.25F,
                    .has_unconditional = unconditional,
                    .has_degraded = true,
                    .unconditional_delta = {},
                    .degraded_delta = {}};
    combine.token_size = 5;
    expect_equal(
        random_step(update, true, combine, {.compared = true, .slope = 0.75F}, {kImages, 3, 5}));
  }
}

TEST_F(LoopGraphs, RulesAreTheHosts) {
  const EulerUpdate update{0.75F, -0.125F};
  using enum CfgRule::Kind;
  for (const auto kind : {cfg, apg, cfg_zero, tcfg, mambo_g}) {
    for (const bool zero : {false, kind == cfg_zero}) {
      for (const auto& [rescale, normalization] :
           {std::pair{0.0, 0.0}, {0.7, 0.0}, {0.0, 0.9}, {0.7, 0.5}}) {
        SCOPED_TRACE("rule " + std::to_string(static_cast<int>(kind)) + " rescale " +
                     std::to_string(rescale) + " normalization " + std::to_string(normalization) +
                     (zero ? " zero" : ""));
        Combine combine{.lambda = 2.5F,
                        .w = 1.25F,
                        .has_unconditional = !zero,
                        .has_degraded = !zero,
                        .unconditional_delta = {},
                        .degraded_delta = {}};
        combine.rule = {.kind = kind,
                        .eta = 0.25,
                        .norm_threshold = 4.0,
                        .rescale = rescale,
                        .normalization = normalization};
        combine.zero = zero;
        for (const bool velocity : {true, false}) {
          expect_equal(random_step(update, velocity, combine, {.compared = true, .slope = 0.75F},
                                   {kImages, 3, 5}));
        }
      }
    }
  }
}

TEST_F(LoopGraphs, CorrectionsAreTheHosts) {
  const EulerUpdate update{0.75F, -0.125F};
  for (const Correction& correction :
       {Correction{.tag = 1.25}, Correction{.prev = 0.5}, Correction{.tag = 1.25, .prev = 0.5}}) {
    for (const auto kind : {CfgRule::Kind::cfg, CfgRule::Kind::tcfg}) {
      Combine combine{.lambda = 2.5F,
                      .w = 1.25F,
                      .has_unconditional = true,
                      .has_degraded = true,
                      .unconditional_delta = {},
                      .degraded_delta = {}};
      combine.rule.kind = kind;
      combine.correction = correction;
      expect_equal(
          random_step(update, true, combine, {.compared = true, .slope = 0.75F}, {kImages, 3, 5}));
    }
  }
}

TEST_F(LoopGraphs, AMaskedTermIsTheHosts) {
  const EulerUpdate update{0.75F, -0.125F};
  for (const auto kind : {CfgRule::Kind::cfg, CfgRule::Kind::tcfg}) {
    Combine combine{.lambda = 2.5F,
                    .w = 1.25F,
                    .has_unconditional = true,
                    .has_degraded = true,
                    .unconditional_delta = {},
                    .degraded_delta = {}};
    combine.rule.kind = kind;
    GuidedStep step =
        random_step(update, true, combine, {.compared = true, .slope = 0.75F}, {kImages, 3, 5});
    step.term_mask = drawn(17, {1, 3, 5});
    step.term_mask.floats()[2] = 0;
    expect_equal(step);
  }
}

// Neither a step without CFG nor one that is skipped moves the momentum.
TEST_F(LoopGraphs, TheMomentumRestsWithoutCfg) {
  const EulerUpdate update{0.75F, -0.125F};
  for (const bool skipped : {false, true}) {
    Combine combine;
    combine.rule.kind = CfgRule::Kind::apg;
    expect_equal(
        random_step(update, true, combine, {.skipped = skipped, .compared = true, .slope = 0.75F}));
  }
}

TEST_F(LoopGraphs, FollowsTheLineWhereTheModelIsSkipped) {
  const EulerUpdate update{0.75F, -0.125F};
  // The row of a step that is skipped combines nothing.
  expect_equal(random_step(update, true, {}, {.skipped = true, .compared = true, .slope = 1.5F}));
  expect_equal(random_step(update, true, {}, {.compared = true, .same_time = true, .slope = 0}));
}

TEST_F(LoopGraphs, ThePictureStaysOutsideTheMask) {
  for (const bool skipped : {false, true}) {
    GuidedStep step =
        random_step(EulerUpdate{0.75F, -0.125F}, true, {}, {.skipped = skipped, .slope = 0.5F});
    step.kept = {.drawn = Tensor({kImages, kSize}, DType::float32),
                 .clean = drawn(17),
                 .noise = drawn(18),
                 .level = {.alpha = 0.375F, .sigma = 0.625F}};
    for (std::size_t i = 0; i < step.kept.drawn.floats().size(); i += 3)
      step.kept.drawn.floats()[i] = 1;
    expect_equal(step);
  }
}

TEST_F(LoopGraphs, GatherPutsEveryRowInItsPlace) {
  constexpr std::int64_t kTokens = 3, kWidth = 5;
  Tensor table0 = drawn(1, {2, kStepColumns}), table1 = drawn(2, {2, kStepColumns});
  const auto row = [](Tensor& table) { return table.floats().subspan(kStepColumns); };
  row(table0)[kUnconditionalRow] = 0;
  row(table0)[kConditionalRow] = 1;
  row(table0)[kDegradedRow] = 2;
  row(table1)[kDegradedRow] = 1;
  row(table1)[kUnconditionalRow] = 2;
  row(table1)[kConditionalRow] = 3;
  row(table0)[kMaKeep] = 0.25F;
  Tensor position({1}, DType::float32), ones({1, kTokens}, DType::float32);
  position.floats().front() = 1;
  std::ranges::fill(ones.floats(), 1.0F);
  const Tensor x0 = drawn(3, {2, kSize}), x1 = drawn(4, {1, kSize});
  const Tensor modulation0 = drawn(5, {4, kWidth}), modulation1 = drawn(6, {4, kWidth});
  const Tensor mask0 = drawn(7, {1, kTokens}), mask1 = drawn(8, {1, kTokens});
  const Tensors outputs{{"latent", Tensor({3, kSize}, DType::float32)},
                        {"time", Tensor({3, kWidth}, DType::float32)},
                        {"keep", Tensor({2, kTokens}, DType::float32)}};
  GraphBuilder graph;
  build_gather(graph, {.members = 2, .rank = 2, .modulation = true, .keep = true});
  run(graph,
      {{"x0", x0},
       {"table0", table0},
       {"position0", position},
       {"modulation0", modulation0},
       {"mask0", mask0},
       {"x1", x1},
       {"table1", table1},
       {"position1", position},
       {"modulation1", modulation1},
       {"mask1", mask1},
       {"images", indices({1, 2, 0})},
       {"times", indices({1, 3, 5})},
       {"keeps", indices({2, 0})},
       {"ones", ones}},
      outputs);
  const auto expect_row = [&](const char* name, std::int64_t at, const Tensor& from,
                              std::int64_t wanted) {
    const Tensor got = outputs.at(name).rows(at, at + 1), want = from.rows(wanted, wanted + 1);
    EXPECT_TRUE(std::ranges::equal(got.floats(), want.floats())) << name << " " << at;
  };
  expect_row("latent", 0, x0, 1);
  expect_row("latent", 1, x1, 0);
  expect_row("latent", 2, x0, 0);
  expect_row("time", 0, modulation0, 1);
  expect_row("time", 1, modulation1, 2);
  expect_row("time", 2, modulation1, 1);
  expect_row("keep", 0, ones, 0);
  for (std::size_t token = 0; token < kTokens; ++token) {
    EXPECT_EQ(outputs.at("keep").rows(1, 2).floats()[token],
              keep_value(0.25F, mask0.floats()[token]));
  }
}

}  // namespace
}  // namespace intaglio
