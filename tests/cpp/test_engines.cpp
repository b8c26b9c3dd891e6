#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "bundle/engines.h"
#include "intaglio/error.h"

namespace intaglio {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

const std::string kGraph = "transformer/forked.onnx";
const std::string kWeights = "transformer/weights.data";
const EngineTarget kTarget{"tensorrt-rtx", "1.7.1.116", "sm89"};

Json profiles(Json min, Json opt, Json max) {
  return {{{"min", std::move(min)}, {"opt", std::move(opt)}, {"max", std::move(max)}}};
}

// What `intaglio build` writes for the shipped model, reduced to the inputs that matter here.
Json good() {
  const Json inputs = {{{"name", "latent"},
                        {"dtype", "float32"},
                        {"shape", {-1, 4, -1, -1}},
                        {"profiles", profiles({1, 4, 8, 8}, {2, 4, 16, 16}, {8, 4, 24, 24})}},
                       {{"name", "branch"},
                        {"dtype", "int64"},
                        {"shape", {-1}},
                        {"profiles", profiles({1}, {3}, {12})}}};
  const Json component = {
      {"key", "690aa9d30e359350"},
      {"plan", "forked.plan"},
      {"plan_bytes", 9},
      {"graph_sha256", std::string(64, 'a')},
      {"weights_sha256", {{kWeights, std::string(64, 'b')}}},
      {"inputs", inputs},
      {"outputs", {{{"name", "prediction"}, {"dtype", "float32"}, {"shape", {-1, 4, -1, -1}}}}},
      {"weights_bytes", 1000},
      {"activation_bytes", {2000}},
      {"layers", 1},
      {"layer_types", {{"gemm", 1}}},
      {"seconds", 0.5}};
  const Json range = {{"batch", {1, 1, 4}}, {"height", {16, 32, 48}}, {"width", {16, 32, 48}}};
  return {{"schema_version", 1},
          {"backend", "tensorrt-rtx"},
          {"version", "1.7.1.116"},
          {"targets", {"sm89", "sm120"}},
          {"precision", "float32"},
          {"flags", Json::array()},
          {"key", "3fa9c1d2"},
          {"profiles", {range}},
          {"producer", {{"intaglio", "0.1.0"}}},
          {"components", {{kGraph, component}}}};
}

class EnginesTest : public testing::Test {
 protected:
  EnginesTest() : root_(fs::path(testing::TempDir()) / fs::path(name())) {
    fs::remove_all(root_);
    fs::create_directories(root_ / "engines");
    bundle_.folder = root_;
    bundle_.latent.vae_scale_factor = 2;
    bundle_.file_sha256 = {{kGraph, std::string(64, 'a')}, {kWeights, std::string(64, 'b')}};
    graph_.path = kGraph;
    graph_.inputs = {
        {"latent", Role::latent, DType::float32, {"base_rows", 4, "latent_height", "latent_width"}},
        {"branch", Role::branch, DType::int64, {"rows"}}};
    graph_.outputs = {{"prediction", Role::prediction, DType::float32, {"rows", 4, "h", "w"}}};
  }
  ~EnginesTest() override { fs::remove_all(root_); }

  static std::string name() {
    return std::string("engines_") + testing::UnitTest::GetInstance()->current_test_info()->name();
  }

  void write(const std::string& folder, const Json& json, const std::string& plan = "plan.plan") {
    fs::create_directories(root_ / "engines" / folder);
    std::ofstream(root_ / "engines" / folder / "engine.json") << json.dump();
    if (!plan.empty()) std::ofstream(root_ / "engines" / folder / "forked.plan") << plan;
  }

  // Returns the message of the error that find() or the constructor throws; empty if none does.
  std::string refusal(const EngineTarget& target = kTarget) const {
    try {
      Engines(bundle_, target).find(graph_);
    } catch (const UnavailableError& error) {
      return error.what();
    }
    return {};
  }

  std::string refusal_of(const std::function<void(Json&)>& change) {
    Json json = good();
    change(json);
    write("a", json);
    return refusal();
  }

  std::string misfit(std::int64_t base_rows, std::int64_t rows, std::int64_t height,
                     std::int64_t width) const {
    try {
      Engines(bundle_, kTarget)
          .find(graph_)
          .choose({{"latent", {base_rows, 4, height, width}}, {"branch", {rows}}});
    } catch (const UnavailableError& error) {
      return error.what();
    }
    return {};
  }

  fs::path root_;
  Bundle bundle_;
  Graph graph_;
};

TEST_F(EnginesTest, ReadsWhatTheBuilderWrites) {
  write("a", good());
  const EngineFolder folder = read_engine_folder(root_ / "engines" / "a");
  EXPECT_EQ(folder.version, "1.7.1.116");
  EXPECT_EQ(folder.profiles.at(0).height, (std::array<int, 3>{16, 32, 48}));
  EXPECT_FALSE(folder.weight_streaming());
  const EngineComponent& component = folder.components.at(kGraph);
  EXPECT_EQ(component.weights_bytes, 1000U);
  EXPECT_EQ(component.inputs.at(0).profiles.at(0).max, (Shape{8, 4, 24, 24}));
  EXPECT_EQ(component.activation_bytes, 2000U);
  std::map<std::string, Shape> shapes;
  for (const EngineTensor& input : component.inputs) shapes[input.name] = input.profiles.at(0).opt;
  const auto choice = Engines(bundle_, kTarget).find(graph_).choose(shapes);
  EXPECT_EQ(choice.folder->path, root_ / "engines" / "a");
  EXPECT_EQ(choice.component->plan, "forked.plan");
}

TEST_F(EnginesTest, NoneAtAllNamesTheLineThatBuilds) {
  const std::string line =
      "run `intaglio build " + root_.string() + " --backend tensorrt-rtx --arch sm89`";
  EXPECT_THAT(refusal(), AllOf(HasSubstr("has no engines"), HasSubstr(line)));
  fs::remove_all(root_ / "engines");
  EXPECT_THAT(refusal(), HasSubstr(line));
  // Plain TensorRT builds for the GPU in the machine.
  EXPECT_THAT(refusal({"tensorrt", "11.1.0.106", "sm90"}),
              AllOf(HasSubstr("--backend tensorrt`"), Not(HasSubstr("--arch"))));
}

TEST_F(EnginesTest, SaysWhatDiffersInTheMachine) {
  write("a", good());
  EXPECT_EQ(refusal(), "");
  EXPECT_THAT(refusal({"tensorrt-rtx", "1.7.2.3", "sm89"}),
              HasSubstr("engines/a was built by version 1.7.1.116, and version 1.7.2.3 is to run"));
  EXPECT_THAT(refusal({"tensorrt-rtx", "1.7.1.116", "sm86"}),
              AllOf(HasSubstr("engines/a is for sm89 and sm120, and this GPU is sm86"),
                    HasSubstr("--arch sm86`")));
  // Engines of another backend are not mentioned.
  EXPECT_THAT(refusal({"tensorrt", "11.1.0.106", "sm89"}), Not(HasSubstr("engines/a")));
}

TEST_F(EnginesTest, SaysWhatDiffersInTheBundle) {
  write("a", good());
  bundle_.file_sha256[kWeights] = std::string(64, 'c');
  EXPECT_THAT(refusal(), HasSubstr("engines/a was built from another " + kWeights));
  bundle_.file_sha256.erase(kWeights);
  EXPECT_THAT(refusal(), HasSubstr("engines/a was built from another " + kWeights));
  bundle_.file_sha256[kGraph] = std::string(64, 'c');
  EXPECT_THAT(refusal(), HasSubstr("engines/a was built from another " + kGraph));
  graph_.path = "vae_decoder/model.onnx";
  EXPECT_THAT(refusal(), AllOf(HasSubstr("has no engine for vae_decoder/model.onnx"),
                               HasSubstr("interrupted")));
}

TEST_F(EnginesTest, SaysThatAPlanIsNotWhole) {
  write("a", good(), "plan.pla");
  EXPECT_THAT(refusal(), HasSubstr("forked.plan has 8 bytes where engine.json says 9"));
  fs::remove(root_ / "engines" / "a" / "forked.plan");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("cannot read "), HasSubstr("forked.plan")));
}

TEST_F(EnginesTest, SaysThatInputsAreOthers) {
  write("a", good());
  graph_.inputs[1].dtype = DType::float32;
  EXPECT_THAT(refusal(), HasSubstr("engines/a has other inputs than the manifest says"));
  graph_.inputs.pop_back();
  EXPECT_THAT(refusal(), HasSubstr("engines/a has other inputs"));
}

TEST_F(EnginesTest, RefusesBrokenFilesByTheirField) {
  EXPECT_THAT(refusal_of([](Json& j) { j["schema_version"] = 2; }), HasSubstr("a newer Intaglio"));
  EXPECT_THAT(refusal_of([](Json& j) { j.erase("targets"); }),
              AllOf(HasSubstr("targets is missing"), HasSubstr("run intaglio build again")));
  EXPECT_THAT(refusal_of([](Json& j) { j["profiles"][0]["batch"] = {1, 2}; }),
              HasSubstr("profiles[0].batch must hold three numbers"));
  EXPECT_THAT(refusal_of([](Json& j) { j["components"][kGraph]["plan"] = "../x.plan"; }),
              HasSubstr("not a path inside"));
  EXPECT_THAT(refusal_of([](Json& j) { j["components"][kGraph]["inputs"][0]["profiles"].clear(); }),
              HasSubstr("profiles are not as many as the folder's"));
  std::ofstream(root_ / "engines" / "a" / "engine.json") << "{";
  EXPECT_THAT(refusal(), HasSubstr("is not valid JSON"));
}

TEST_F(EnginesTest, OneBrokenFolderDoesNotHideAnother) {
  write("a", Json::object());
  write("b", good());
  EXPECT_EQ(refusal(), "");
}

TEST_F(EnginesTest, ChoosesTheFirstProfileThatFits) {
  write("a", good());
  Json wide = good();
  Json& component = wide["components"][kGraph];
  for (Json* list : {&wide["profiles"], &component["inputs"][0]["profiles"],
                     &component["inputs"][1]["profiles"]})
    list->push_back(list->front());
  component["inputs"][0]["profiles"][1]["max"] = {8, 4, 64, 64};
  write("b", wide);
  const GraphEngines engines = Engines(bundle_, kTarget).find(graph_);
  const auto choose = [&](std::int64_t side) {
    const auto choice = engines.choose({{"latent", {2, 4, side, side}}, {"branch", {3}}});
    return choice.folder->path.filename().string() + std::to_string(choice.profile);
  };
  EXPECT_EQ(choose(8), "a0");
  EXPECT_EQ(choose(24), "a0");
  EXPECT_EQ(choose(25), "b1");
  EXPECT_EQ(choose(64), "b1");
  EXPECT_THROW(choose(65), UnavailableError);
}

TEST_F(EnginesTest, SaysWhichFlagDoesNotFitAndWhatWould) {
  write("a", good());
  EXPECT_EQ(misfit(8, 12, 24, 8), "");
  EXPECT_THAT(
      misfit(2, 3, 32, 16),
      AllOf(HasSubstr("--height 64 is not what the engine takes, 16 to 48 pixels"),
            HasSubstr("engines/a/forked.plan"),
            HasSubstr("--arch sm89 --profile batch=1:1:4,height=16:32:64,width=16:32:48`")));
  EXPECT_THAT(misfit(2, 3, 16, 4),
              AllOf(HasSubstr("--width 8 is not"), HasSubstr("width=8:32:48`")));
  // Five images need ten rows of latents, and there may be eight.
  EXPECT_THAT(misfit(10, 15, 16, 16),
              AllOf(HasSubstr("--batch is not what the engine takes, 1 to 4 images"),
                    HasSubstr("10 rows of latent where there may be 1 to 8"),
                    HasSubstr("--profile batch=1:1:5,")));
  EXPECT_THAT(misfit(8, 13, 16, 16), HasSubstr("--profile batch=1:1:5,"));
}

TEST_F(EnginesTest, OfPackedLatentsOnlyTheTokensAreKnown) {
  Json json = good();
  json["components"][kGraph]["inputs"][0]["shape"] = {-1, -1, 16};
  json["components"][kGraph]["inputs"][0]["profiles"] =
      profiles({1, 16, 16}, {2, 64, 16}, {8, 144, 16});
  write("a", json);
  graph_.inputs[0].axes = {"base_rows", "tokens", 16};
  try {
    Engines(bundle_, kTarget).find(graph_).choose({{"latent", {2, 256, 16}}, {"branch", {3}}});
    FAIL();
  } catch (const UnavailableError& error) {
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("--height and --width"), HasSubstr("16 to 48 by 16 to 48"),
                      HasSubstr("256 where there may be 16 to 144 tokens"),
                      HasSubstr("height=MIN:OPT:MAX,width=MIN:OPT:MAX`")));
  }
}

}  // namespace
}  // namespace intaglio
