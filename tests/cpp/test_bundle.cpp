#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "manifest_json.h"

namespace intaglio {
namespace {

using testing::HasSubstr;

TEST(Manifest, GoodOneIsRead) {
  const Manifest manifest = parse_manifest(good().dump(), "bundle.json");
  const Bundle& bundle = manifest.bundle;
  EXPECT_EQ(bundle.transformer_graphs.at("forked").input(Role::latent).axes.at(1),
            (std::variant<std::int64_t, std::string>(std::int64_t{4})));
  EXPECT_EQ(bundle.blocks, 6);
  EXPECT_EQ(bundle.massive_activations.channels, (std::vector<int>{3, 30}));
  EXPECT_EQ(bundle.massive_activations.ref, (std::vector<float>{0.5F, -1.5F}));
  EXPECT_EQ(bundle.latent.scaling_factor, 1.5305);
  EXPECT_EQ(bundle.scheduler.shift, 3.0);
  EXPECT_EQ(bundle.scheduler.shift_terminal, 0.0);
  EXPECT_EQ(bundle.prompt->text_length(), 11);
  EXPECT_EQ(bundle.defaults.guidance.cfg_window.end, 0.8);
  EXPECT_EQ(bundle.defaults.guidance.dg_window.end, 1.0);
  EXPECT_EQ(bundle.defaults.guidance.ma_keep.first, 0.5);
  EXPECT_EQ(manifest.files.at("text/clip.json").bytes, 10U);
  EXPECT_FALSE(bundle.vae_decoder);
}

TEST(Manifest, NodesNameTheRoleTheyLack) {
  const Manifest manifest = parse_manifest(good().dump(), "bundle.json");
  EXPECT_THROW(manifest.bundle.transformer_graphs.at("forked").input(Role::guidance), InputError);
}

TEST(Manifest, SourceHasOtherValuesSinceSchema3) {
  Json json = good();
  json["transformer"]["graphs"]["forked"]["inputs"].push_back(
      tensor("source", {"rows", "tokens"}, "int64"));
  for (const int schema : {1, 2}) {
    const Change change{"/schema_version", schema, "input source has other values: export the"};
    expect_refused(json, change);
  }
  json["schema_version"] = 3;
  EXPECT_TRUE(parse_manifest(json.dump(), "bundle.json").bundle.transformer().takes(Role::source));
}

class BadManifest : public testing::TestWithParam<Change> {};

TEST_P(BadManifest, IsRefusedByThePlaceThatIsWrong) { expect_refused(good(), GetParam()); }

INSTANTIATE_TEST_SUITE_P(
    Schema, BadManifest,
    testing::Values(
        Change{"/schema_version", 4, "newer Intaglio (schema 4"},
        Change{"/schema_version", 4294967297, "newer Intaglio (schema 4294967297"},
        Change{"/schema_version", 0, "at least 1"}, Change{"/schema_version", 1.0, "wrong type"},
        Change{"/schema_version", true, "wrong type"}, Change{"/name", removed, "name is missing"},
        Change{"/producer/intaglio", 1, "producer.intaglio has the wrong type"},
        Change{"/layout", "dual", "transformer.graphs.base is missing"},
        Change{"/prediction_type", "epsilon", "does not fit a model that predicts epsilon"},
        Change{"/prediction_type", "sample", "must be velocity or epsilon"}));

INSTANTIATE_TEST_SUITE_P(
    Paths, BadManifest,
    testing::Values(
        Change{"/transformer/graphs/forked/path", "/etc/passwd", "not a path inside"},
        Change{"/transformer/graphs/forked/path", "../x.onnx", "not a path inside"},
        Change{"/transformer/graphs/forked/path", "a/../../x.onnx", "not a path inside"},
        Change{"/transformer/graphs/forked/path", "..\\x.onnx", "not a path inside"},
        Change{"/transformer/graphs/forked/path", "", "not a path inside"},
        Change{"/prompt/encoders/clip/tokenizer", std::string("a\0b", 3), "not a path inside"},
        Change{"/files/..~1secret", Json{{"bytes", 1}, {"sha256", "x"}}, "files.../secret names"},
        Change{"/transformer/graphs/forked/path", "transformer/other.onnx", "does not list"}));

INSTANTIATE_TEST_SUITE_P(
    Sizes, BadManifest,
    testing::Values(Change{"/transformer/blocks", 0, "transformer.blocks must be from 1"},
                    Change{"/transformer/channels", 1000000, "transformer.channels must be from 1"},
                    Change{"/transformer/patch_size", 1.5, "wrong type"},
                    Change{"/transformer/graphs/forked/inputs/0/axes/1", -4,
                           "axes[1] must be from 1"},
                    Change{"/massive_activations/block", 6, "not a block"},
                    Change{"/massive_activations/channels/1", 32, "names a channel"},
                    Change{"/massive_activations/channels", Json::array(), "is empty"},
                    Change{"/massive_activations/ref", {1.0}, "one value per channel"},
                    Change{"/massive_activations/ref/0", 1e300, "wrong type"},
                    Change{"/latent/scaling_factor", 0.0, "must not be 0"},
                    Change{"/defaults/height", 72, "give a multiple of 16 from 16 to 96"},
                    Change{"/defaults/width", 80, "give a multiple of 16 from 16 to 64"}));

INSTANTIATE_TEST_SUITE_P(
    Prompts, BadManifest,
    testing::Values(
        Change{"/prompt/encoders/clip/max_length", 1, "must be at least 2"},
        Change{"/prompt/encoders/clip/graph/outputs/0/role", "image", "must be hidden or pooled"},
        Change{"/prompt/encoders/clip/graph/outputs/0/axes/2", "width", "no fixed last axis"},
        Change{"/prompt/encoders/clip/graph/outputs/1/role", "hidden", "no output of role pooled"},
        Change{"/prompt/text/0/length", 9, "longer than what its encoders give"},
        Change{"/prompt/text/0/encoders", {"clip", "clip"}, "more channels than text_width"},
        Change{"/prompt/text/0/encoders/0", "t5", "does not have"},
        Change{"/prompt/text", Json::array(), "is empty"},
        Change{"/prompt/pooled/0", "t5", "does not have"}));

INSTANTIATE_TEST_SUITE_P(
    Inputs, BadManifest,
    testing::Values(
        Change{"/transformer/graphs/forked/inputs/0/role", "image", "inputs[0].role must be"},
        Change{"/transformer/graphs/forked/inputs/1/role", "latent", "is that of two inputs"},
        Change{"/transformer/graphs/forked/inputs/7/role", "guidance", "none of role keep"},
        Change{"/transformer/graphs/forked/inputs/3", tensor("class", {"base"}),
               "pooled contradicts"},
        Change{"/transformer/graphs/forked/inputs/3/role", "text_mask", "pooled contradicts"},
        Change{"/transformer/graphs/forked/inputs/0/axes", {"base", 4, "h"}, "must be 4 for"},
        Change{"/transformer/graphs/forked/inputs/1/axes", Json::array(), "must be 1 for"},
        Change{"/transformer/graphs/forked/inputs/2/axes", Json::array(), "inputs[2].axes must be"},
        Change{"/transformer/graphs/forked/inputs/3/axes", {5}, "be 2 for an input of role pooled"},
        Change{"/transformer/graphs/forked/inputs/7/axes", {"rows"}, "must be 2 for"},
        Change{"/latent/packed", true, "must be 3 for an input of role latent"},
        Change{"/transformer/graphs/forked/outputs", Json::array(),
               "outputs have none of role prediction"},
        Change{"/transformer/graphs/forked/cpu", "transformer/cpu.onnx", "does not list"},
        Change{"/transformer/graphs/forked/decomposed", "transformer/d.onnx", "does not list"},
        Change{"/transformer/graphs/forked/cpu", "../cpu.onnx", "not a path inside"},
        Change{"/transformer/max_abs", {1, "x"}, "max_abs[1] has the wrong type"},
        Change{"/classes", Json{{"count", 9}, {"null", 9}}, "classes excludes prompt"},
        Change{"/prompt", removed, "prompt is missing"},
        Change{"/prompt/encoders/clip/dropped", 0, "dropped"},
        Change{"/prompt/encoders/clip/dropped", 7, "is longer than what its encoders give"},
        Change{"/prompt/encoders/clip/dropped", 8, "dropped leaves no token of max_length"},
        Change{"/prompt/mask_padding", 0, "mask_padding"},
        Change{"/prompt/mask_padding", 1, "mask_padding is for a prompt with text_mask"},
        Change{"/cfg_rescale", "image", "cfg_rescale must be token"},
        Change{"/cfg_rescale", "token", "cfg_rescale is for latents that are packed"},
        Change{"/prompt/text_mask", "clip", "text_mask must name the one encoder"},
        Change{"/prompt/text_mask", 3, "text_mask has the wrong type"},
        Change{"/prompt/encoders/clip/graph/inputs/0/role", "image", "must be token_ids or"},
        Change{"/latent/packed", 1, "packed has the wrong type"},
        Change{"/latent/fixed_size", true, "draws 64x96 pixels only, not 48x64"},
        Change{"/defaults/distilled_guidance", 3.5, "an input of role guidance"}));

Change skipping(const Json& skipped, const char* says) {
  return {
      "/skipping",
      Json::array({{{"steps", 8}, {"scheduler", "x"}, {"tolerance", 0.1}, {"skipped", skipped}}}),
      says};
}

INSTANTIATE_TEST_SUITE_P(
    Skipping, BadManifest,
    testing::Values(skipping(Json::array(), "skipping[0].skipped is empty"),
                    skipping({4, 6, 4}, "skipping[0].skipped cannot be used (--skip-steps 4 is"),
                    skipping({4, 8}, "give numbers from 3 to 7"),
                    skipping({2, 4}, "give numbers from 3 to 7")));

TEST(Manifest, SchedulesOfSkippedStepsMaySayWhatTheyCost) {
  Json json = good();
  Json plain = {{"steps", 8}, {"scheduler", "x"}, {"tolerance", 0.1}, {"skipped", {4}}};
  Json measured = plain;
  measured.update({{"evaluations", 6.5}, {"median_error", 0.01}, {"largest_error", 0.5}});
  json["skipping"] = {plain, measured};
  const auto skipping = parse_manifest(json.dump(), "bundle.json").bundle.skipping;
  EXPECT_EQ(skipping.at(0).evaluations, std::nullopt);
  EXPECT_EQ(skipping.at(1).evaluations, 6.5);
  EXPECT_EQ(skipping.at(1).median_error, 0.01);
  EXPECT_EQ(skipping.at(1).largest_error, 0.5);
}

// A bundle that is drawn by class, in one size, with packed latents.
TEST(Manifest, OtherInputsAreRead) {
  Json json = good();
  json.erase("prompt");
  json["classes"] = {{"count", 1000}, {"null", 1000}};
  json["latent"].update({{"packed", true}, {"fixed_size", true}});
  json["defaults"].update({{"height", 96}, {"width", 64}, {"distilled_guidance", 3.5}});
  json["transformer"]["max_abs"] = {1.0, 2.5};
  Json& forked = json["transformer"]["graphs"]["forked"];
  forked["cpu"] = "transformer/cpu.onnx";
  forked["decomposed"] = "transformer/d.onnx";
  json["files"]["transformer/d.onnx"] = {{"bytes", 1}, {"sha256", ""}};
  json["files"]["transformer/cpu.onnx"] = {{"bytes", 1}, {"sha256", ""}};
  forked["inputs"][0] = tensor("latent", {"base", "tokens", 16});
  forked["inputs"][2] = tensor("class", {"base"}, "int64");
  forked["inputs"][3] = tensor("guidance", {"base"});
  const Bundle bundle = parse_manifest(json.dump(), "bundle.json").bundle;
  EXPECT_FALSE(bundle.prompt);
  EXPECT_EQ(bundle.classes->null, 1000);
  EXPECT_TRUE(bundle.latent.packed && bundle.latent.fixed_size);
  EXPECT_EQ(bundle.defaults.distilled_guidance, 3.5);
  EXPECT_EQ(bundle.max_abs, (std::vector<double>{1.0, 2.5}));
  EXPECT_EQ(bundle.transformer().cpu, "transformer/cpu.onnx");
  EXPECT_EQ(bundle.transformer().decomposed, "transformer/d.onnx");
  EXPECT_TRUE(bundle.transformer().takes(Role::class_label));
  EXPECT_FALSE(bundle.transformer().takes(Role::text));

  forked["inputs"].erase(2);
  EXPECT_THROW(parse_manifest(json.dump(), "bundle.json"), InputError);
  forked["inputs"].push_back(tensor("text", {"base", 3, 4}));
  EXPECT_THROW(parse_manifest(json.dump(), "bundle.json"), InputError);
}

TEST(Manifest, DegradedTakesWhatBaseTakes) {
  Json json = good();
  json["layout"] = "dual";
  Json base = json["transformer"]["graphs"]["forked"], degraded = base;
  for (int i = 0; i < 4; ++i) base["inputs"].erase(4);
  degraded["inputs"].erase(6);
  json["transformer"]["graphs"] = {{"base", base}, {"degraded", degraded}};
  parse_manifest(json.dump(), "bundle.json");
  json["transformer"]["graphs"]["degraded"]["inputs"][3]["role"] = "guidance";
  EXPECT_THROW(parse_manifest(json.dump(), "bundle.json"), InputError);
  json["transformer"]["graphs"]["degraded"]["inputs"].erase(3);
  EXPECT_THROW(parse_manifest(json.dump(), "bundle.json"), InputError);
}

INSTANTIATE_TEST_SUITE_P(
    Sampling, BadManifest,
    testing::Values(Change{"/scheduler/type", "DDIMScheduler", "DDIMScheduler"},
                    Change{"/scheduler/shift", 0.0, "shift must be"},
                    Change{"/scheduler/invert_sigmas", true, "scheduler.invert_sigmas"},
                    Change{"/sigmas", "cosine", "sigmas is something"},
                    Change{"/defaults/steps", 0, "defaults.steps must be from 1"},
                    Change{"/defaults/ma_keep", {0, -1.5}, "ma-keep -1.5"},
                    Change{"/defaults/cfg_window", {0.5, 0.5}, "cfg-window"},
                    Change{"/defaults/dg_window", {0.5}, "two numbers"}));

// Every parameter with which diffusers would draw other pictures than ours is refused by its name.
TEST(Manifest, DpmSolverIsReadWhereItIsSampled) {
  Json json = good();
  const Json sampled = {{"type", "DPMSolverMultistepScheduler"},
                        {"use_flow_sigmas", true},
                        {"prediction_type", "flow_prediction"},
                        {"flow_shift", 2.0},
                        {"solver_order", 2},
                        {"solver_type", "midpoint"},
                        {"algorithm_type", "dpmsolver++"},
                        {"final_sigmas_type", "zero"},
                        {"lower_order_final", true},
                        {"euler_at_final", false},
                        {"thresholding", false},
                        {"use_lu_lambdas", nullptr}};
  json["scheduler"] = sampled;
  EXPECT_EQ(parse_manifest(json.dump(), "bundle.json").bundle.scheduler.shift, 2.0);

  const auto refused = [&](const std::string& key, const Json& value) {
    json["scheduler"] = sampled;
    json["scheduler"][key] = value;
    if (value.is_discarded()) json["scheduler"].erase(key);
    try {
      parse_manifest(json.dump(), "bundle.json");
      ADD_FAILURE() << key << " was accepted";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr("scheduler." + key + " is "));
    }
  };
  refused("use_flow_sigmas", false);
  refused("use_flow_sigmas", removed);
  refused("prediction_type", "epsilon");
  refused("prediction_type", removed);
  refused("solver_order", 3);
  refused("solver_type", "heun");
  refused("algorithm_type", "sde-dpmsolver");
  refused("final_sigmas_type", "sigma_min");
  refused("lower_order_final", false);
  refused("euler_at_final", true);
  refused("thresholding", true);
  refused("use_lu_lambdas", true);
}

TEST(Manifest, LinspaceSigmas) {
  Json json = good();
  EXPECT_FALSE(parse_manifest(json.dump(), "bundle.json").bundle.scheduler.linspace_sigmas);
  json["sigmas"] = "linspace";
  EXPECT_TRUE(parse_manifest(json.dump(), "bundle.json").bundle.scheduler.linspace_sigmas);
}

// The schedulers of facebook/DiT-XL-2-256 and PixArt-Sigma, as export writes them.
TEST(Manifest, VariancePreservingSchedulersAreReadWhereTheyAreSampled) {
  Json json = good();
  json["prediction_type"] = "epsilon";
  const Json common = {{"num_train_timesteps", 1000},
                       {"beta_start", 0.0002},
                       {"beta_end", 0.03},
                       {"beta_schedule", "scaled_linear"},
                       {"trained_betas", nullptr},
                       {"prediction_type", "epsilon"},
                       {"thresholding", false},
                       {"rescale_betas_zero_snr", false},
                       {"steps_offset", 1},
                       {"dynamic_thresholding_ratio", 0.995}};
  Json ddim = common, dpm = common;
  ddim.update({{"type", "DDIMScheduler"}, {"clip_sample", false}, {"set_alpha_to_one", false}});
  dpm.update({{"type", "DPMSolverMultistepScheduler"},
              {"solver_order", 2},
              {"use_flow_sigmas", false},
              {"flow_shift", 1.0},
              {"timestep_spacing", "linspace"},
              {"variance_type", nullptr}});
  for (const Json& sampled : {ddim, dpm}) {
    json["scheduler"] = sampled;
    const SchedulerConfig config = parse_manifest(json.dump(), "bundle.json").bundle.scheduler;
    EXPECT_EQ(config.prediction_type, PredictionType::epsilon);
    EXPECT_EQ(config.beta_start, 0.0002);
    EXPECT_EQ(config.beta_end, 0.03);
    EXPECT_EQ(config.beta_schedule, "scaled_linear");
    EXPECT_EQ(config.steps_offset, 1);
    EXPECT_EQ(config.timestep_spacing, sampled.value("timestep_spacing", ""));
    EXPECT_EQ(config.set_alpha_to_one, sampled.value("set_alpha_to_one", true));
  }
  const auto refused = [&](const Json& sampled, const std::string& key, const Json& value) {
    json["scheduler"] = sampled;
    json["scheduler"][key] = value;
    if (value.is_discarded()) json["scheduler"].erase(key);
    try {
      parse_manifest(json.dump(), "bundle.json");
      ADD_FAILURE() << key << " was accepted";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr("scheduler." + key + " is "));
    }
  };
  refused(ddim, "clip_sample", true);
  refused(ddim, "clip_sample", removed);
  for (const Json& sampled : {ddim, dpm}) {
    refused(sampled, "prediction_type", "v_prediction");
    refused(sampled, "thresholding", true);
    refused(sampled, "rescale_betas_zero_snr", true);
    refused(sampled, "trained_betas", {0.1, 0.2});
  }
  refused(dpm, "use_flow_sigmas", true);
  refused(dpm, "lambda_min_clipped", -5.1);
  refused(dpm, "variance_type", "learned_range");
  refused(dpm, "solver_order", 3);
  refused(dpm, "use_karras_sigmas", true);
}

TEST(Manifest, TextThatIsNoManifest) {
  for (const std::string text : {"", "{", "[]", "null", "\xff", "{\"schema_version\": 1e999}"}) {
    EXPECT_THROW(parse_manifest(text, "bundle.json"), InputError) << text;
  }
  EXPECT_THROW(parse_manifest(std::string(100000, '['), "bundle.json"), InputError);
}

}  // namespace
}  // namespace intaglio
