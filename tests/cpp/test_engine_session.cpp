#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "backend/engine_session.h"
#include "intaglio/error.h"

namespace intaglio {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A session that binds nothing: these tests are about which of them is bound.
class Unbound final : public Session {
 public:
  std::unique_ptr<BoundGraph> bind(const std::vector<Binding>&,
                                   const std::vector<Binding>&) const override {
    return nullptr;
  }
};

const std::string kSha(64, 'a');

// An engine for 1 to `batch` rows, as `intaglio build` describes it.
Json engine(int batch) {
  const Json profile = {{"min", {1}}, {"opt", {1}}, {"max", {batch}}};
  const Json input = {
      {"name", "latent"}, {"dtype", "float32"}, {"shape", {-1}}, {"profiles", {profile}}};
  const Json component = {
      {"key", "690aa9d30e359350"}, {"plan", "g.plan"},
      {"plan_bytes", 0},           {"context_model", "g.onnx"},
      {"graph_sha256", kSha},      {"weights_sha256", Json::object()},
      {"inputs", {input}},         {"outputs", {{{"name", "out"}, {"dtype", "float32"}}}},
      {"weights_bytes", 1},        {"activation_bytes", {1}}};
  const Json range = {{"batch", {1, 1, batch}}, {"height", {8, 8, 8}}, {"width", {8, 8, 8}}};
  return {{"schema_version", 1},
          {"backend", "tensorrt-rtx"},
          {"version", "1.7.1"},
          {"targets", {"sm89"}},
          {"flags", Json::array()},
          {"profiles", {range}},
          {"components", {{"g", component}}}};
}

class EngineSessionTest : public testing::Test {
 protected:
  EngineSessionTest()
      : root_(fs::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    fs::remove_all(root_);
    bundle_.folder = root_;
    bundle_.latent.vae_scale_factor = 1;
    bundle_.file_sha256 = {{"g", kSha}};
    graph_.path = "g";
    graph_.inputs = {{"latent", Role::latent, DType::float32, {"rows"}}};
    graph_.outputs = {{"out", Role::prediction, DType::float32, {"rows"}}};
  }
  ~EngineSessionTest() override { fs::remove_all(root_); }

  void build(const std::string& name, const Json& json) const {
    fs::create_directories(root_ / "engines" / name);
    std::ofstream(root_ / "engines" / name / "engine.json") << json.dump();
    std::ofstream(root_ / "engines" / name / "g.plan");
  }

  EngineSession session() {
    const Engines engines(bundle_, {"tensorrt-rtx", "", "sm89"});
    const auto open = [this](const fs::path& model) {
      opened_.push_back(model.empty() ? "graph" : model.parent_path().filename().string());
      if (opened_.back() == refused_) throw UnavailableError("another version");
      return std::make_unique<Unbound>();
    };
    return {graph_, engines.find(graph_), "", open, use_};
  }

  void bind(const EngineSession& session, std::int64_t rows) {
    session.bind({{Role::latent, Tensor({rows}, DType::float32)}}, {});
  }

  fs::path root_;
  Bundle bundle_;
  Graph graph_;
  std::vector<std::string> opened_;
  std::string refused_;
  std::shared_ptr<EngineUse> use_ = std::make_shared<EngineUse>();
};

TEST_F(EngineSessionTest, RunsTheEngineThatFitsAndOpensItOnce) {
  build("small", engine(2));
  build("wide", engine(8));
  const EngineSession both = session();
  EXPECT_THAT(opened_, IsEmpty());
  for (const int rows : {1, 2, 5, 8, 2}) bind(both, rows);
  EXPECT_THAT(opened_, ElementsAre("small", "wide"));
  EXPECT_THAT(use_->text(),
              AllOf(HasSubstr("engines/small runs g"), HasSubstr("engines/wide runs g")));
}

TEST_F(EngineSessionTest, LetsTheProviderCompileWhatNoEngineTakes) {
  build("small", engine(2));
  const EngineSession one = session();
  for (const int rows : {3, 4, 1}) bind(one, rows);
  EXPECT_THAT(opened_, ElementsAre("graph", "small"));
  EXPECT_THAT(use_->text(), AllOf(HasSubstr("the provider compiled g, because --batch is not"),
                                  HasSubstr("engines/small runs g")));
}

TEST_F(EngineSessionTest, AsksForARefusedEngineOnce) {
  build("small", engine(2));
  refused_ = "small";
  const EngineSession one = session();
  bind(one, 1);
  bind(one, 2);
  EXPECT_THAT(opened_, ElementsAre("small", "graph"));
  EXPECT_THAT(use_->text(), "; the provider compiled g, because another version");
}

TEST_F(EngineSessionTest, EnginesOfAnOlderIntaglioAreBuiltAgain) {
  Json json = engine(2);
  json["components"]["g"].erase("context_model");
  build("old", json);
  bind(session(), 1);
  EXPECT_THAT(opened_, ElementsAre("graph"));
  EXPECT_THAT(use_->text(), HasSubstr("an older Intaglio built engines/old"));
}

TEST_F(EngineSessionTest, WithoutAnyItSaysWhy) {
  const EngineSession none(
      graph_, {}, "there are none", [](const fs::path&) { return std::make_unique<Unbound>(); },
      use_);
  bind(none, 1);
  EXPECT_EQ(use_->text(), "; the provider compiled g, because there are none");
}

}  // namespace
}  // namespace intaglio
