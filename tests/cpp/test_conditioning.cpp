#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "manifest_json.h"

namespace intaglio {
namespace {

TEST(Manifest, WhatIsMadeAheadOfTheLoopIsAnInputToo) {
  const Bundle without = parse_manifest(good().dump(), "bundle.json").bundle;
  EXPECT_EQ(without.conditioning(), nullptr);
  EXPECT_EQ(without.input(Role::text), &without.transformer().input(Role::text));
  EXPECT_EQ(without.input(Role::guidance), nullptr);
  const Bundle bundle = parse_manifest(hoisted().dump(), "bundle.json").bundle;
  ASSERT_NE(bundle.conditioning(), nullptr);
  EXPECT_EQ(bundle.input(Role::text), &bundle.conditioning()->input(Role::text));
  EXPECT_EQ(bundle.input(Role::latent), &bundle.transformer().input(Role::latent));
  EXPECT_FALSE(bundle.observed());
}

class BadConditioning : public testing::TestWithParam<Change> {};

TEST_P(BadConditioning, IsRefusedByWhatIsWrong) { expect_refused(hoisted(), GetParam()); }

INSTANTIATE_TEST_SUITE_P(
    Conditioning, BadConditioning,
    testing::Values(Change{"/transformer/graphs/conditioning", removed, "inputs[1].role must be"},
                    Change{"/transformer/graphs/forked/inputs/1", removed,
                           "forked.inputs have none of role modulation"},
                    Change{"/transformer/graphs/forked/inputs/2", removed,
                           "forked.inputs have none of role context"},
                    Change{"/transformer/graphs/forked/inputs/2", tensor("text", {"base", 11, 16}),
                           "inputs[2].role must be"},
                    Change{"/transformer/graphs/forked/inputs/1/axes/1", 95,
                           "take another modulation than the graph conditioning makes"},
                    Change{"/transformer/graphs/forked/inputs/2/axes",
                           {"base", 32},
                           "inputs[2].axes must be 3"},
                    Change{"/transformer/graphs/conditioning/inputs/0", removed,
                           "conditioning.inputs have none of role timestep"},
                    Change{"/transformer/graphs/conditioning/inputs/0/role", "latent",
                           "inputs[0].role must be"},
                    Change{"/transformer/graphs/conditioning/inputs/1/axes",
                           {"conditions"},
                           "inputs[1].axes must be 2"},
                    Change{"/transformer/graphs/conditioning/inputs/1", removed,
                           "pooled contradicts the transformer's inputs"},
                    Change{"/transformer/graphs/conditioning/outputs/0", removed,
                           "outputs have none of role modulation"},
                    Change{"/transformer/graphs/conditioning/outputs/1", removed,
                           "outputs have none of role context"},
                    Change{"/transformer/graphs/conditioning/outputs/1/role", "modulation",
                           "outputs[1].role is nothing that conditioning makes"},
                    Change{"/transformer/graphs/conditioning/outputs/1/axes/2", "channels",
                           "outputs[1].axes must be 3"},
                    Change{"/transformer/graphs/conditioning/outputs/0/dtype", "int64",
                           "take another modulation"},
                    Change{"/files/transformer~1conditioning.onnx", removed,
                           "does not list transformer/conditioning.onnx"}));

}  // namespace
}  // namespace intaglio
