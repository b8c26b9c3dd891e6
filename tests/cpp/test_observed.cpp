#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "manifest_json.h"

namespace intaglio {
namespace {

using testing::HasSubstr;

// Returns good() with three observed blocks, whose outputs are listed after the prediction.
Json observed() {
  Json json = good();
  json["transformer"]["blocks"] = 3;
  json["massive_activations"]["block"] = 0;
  Json& outputs = json["transformer"]["graphs"]["forked"]["outputs"];
  for (int block = 0; block < 3; ++block) {
    const char* rows = block == 0 ? "base" : "rows";
    const std::string k = std::to_string(block);
    outputs.push_back(tensor(("gate_" + k).c_str(), {rows, 32}));
    outputs.push_back(tensor(("hidden_states_" + k).c_str(), {rows, "tokens", 32}));
  }
  return json;
}

TEST(Manifest, AnObservedTransformerIsRead) {
  EXPECT_FALSE(parse_manifest(good().dump(), "bundle.json").bundle.observed());
  EXPECT_TRUE(parse_manifest(observed().dump(), "bundle.json").bundle.observed());
  Json json = observed();  // with the outputs in another order
  Json& outputs = json["transformer"]["graphs"]["forked"]["outputs"];
  std::swap(outputs[0], outputs[6]);
  EXPECT_TRUE(parse_manifest(json.dump(), "bundle.json").bundle.observed());
}

class BadOutputs : public testing::TestWithParam<Change> {};

TEST_P(BadOutputs, AreRefusedByTheOneThatIsWrong) { expect_refused(observed(), GetParam()); }

INSTANTIATE_TEST_SUITE_P(
    Observed, BadOutputs,
    testing::Values(
        Change{"/transformer/graphs/forked/outputs/0", removed,
               "outputs have none of role prediction"},
        Change{"/transformer/graphs/forked/outputs/4", removed,
               "outputs have none of role hidden_states_1"},
        Change{"/transformer/graphs/forked/outputs/5", removed, "outputs have none of role gate_2"},
        Change{"/transformer/graphs/forked/outputs/5/role", "gate_02",
               "outputs[5].role must be a role that this version knows (a newer bundle"
               " needs a newer Intaglio)"},
        Change{"/transformer/graphs/forked/outputs/5/role", "gate_0",
               "outputs[5].role is that of two outputs"},
        Change{"/transformer/graphs/forked/outputs/7", tensor("gate_3", {"rows", 32}),
               "outputs[7].role is neither"},
        Change{"/transformer/graphs/forked/outputs/7", tensor("hidden", {"rows", 32}),
               "outputs[7].role is neither"},
        Change{"/transformer/graphs/forked/outputs/1/dtype", "int64",
               "outputs[1].dtype must be float32"},
        Change{"/transformer/graphs/forked/outputs/1/axes", {32}, "outputs[1].axes must be 2"},
        Change{"/transformer/graphs/forked/outputs/2/axes", Json::array(),
               "outputs[2].axes must be 3"},
        Change{"/transformer/graphs/forked/outputs/2/axes/2", 31, "outputs[2].axes must be 3"},
        Change{"/transformer/graphs/forked/outputs/2/axes/0", "rows",
               "first the rows of the latent"},
        Change{"/transformer/graphs/forked/outputs/6/axes/0", "base",
               "first the rows of the prediction"},
        Change{"/transformer/graphs/forked/outputs/0/axes", Json::array(),
               "outputs[4].axes must be 3"},
        Change{"/transformer/blocks", 4, "outputs have none of role hidden_states_3"},
        Change{"/transformer/blocks", 2, "is neither the prediction"},
        Change{"/massive_activations/block", 1, "first the rows of the latent"}));

TEST(Manifest, TheDegradedGraphIsNotObserved) {
  Json json = good();
  json["layout"] = "dual";
  Json base = json["transformer"]["graphs"]["forked"], degraded = base;
  for (int i = 0; i < 4; ++i) base["inputs"].erase(4);
  degraded["inputs"].erase(6);
  degraded["outputs"].push_back(tensor("gate_0", {"rows", 32}));
  json["transformer"]["graphs"] = {{"base", base}, {"degraded", degraded}};
  EXPECT_THAT([&] { parse_manifest(json.dump(), "bundle.json"); },
              testing::ThrowsMessage<InputError>(HasSubstr("degraded.outputs[1].role is neither")));
}

}  // namespace
}  // namespace intaglio
