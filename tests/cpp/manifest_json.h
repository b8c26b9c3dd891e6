// A valid manifest, and a check that a changed one is refused.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "bundle/manifest.h"
#include "intaglio/error.h"

namespace intaglio {

using Json = nlohmann::json;

inline Json tensor(const char* role, Json axes, const char* dtype = "float32") {
  return {{"name", role}, {"role", role}, {"dtype", dtype}, {"axes", std::move(axes)}};
}

inline Json graph(const char* path, Json inputs, Json outputs) {
  return {{"path", path}, {"inputs", std::move(inputs)}, {"outputs", std::move(outputs)}};
}

inline Json transformer() {
  return graph("transformer/forked.onnx",
               {tensor("latent", {"base", 4, "h", "w"}), tensor("timestep", {"base"}),
                tensor("text", {"base", 11, 16}), tensor("pooled", {"base", 5}),
                tensor("mask", {32}), tensor("ref", {32}), tensor("branch", {"rows"}, "int64"),
                tensor("keep", {"rows", "tokens"})},
               {tensor("prediction", {"rows", 4, "h", "w"})});
}

inline Json good() {
  const Json encoder = {
      {"graph", graph("text/model.onnx", {tensor("token_ids", {"n", 8}, "int64")},
                      {tensor("hidden", {"n", 8, 12}), tensor("pooled", {"n", 5})})},
      {"tokenizer", "text/clip.json"},
      {"max_length", 8}};
  Json files;
  for (const char* path : {"transformer/forked.onnx", "text/model.onnx", "text/clip.json"}) {
    files[path] = {{"bytes", 10}, {"sha256", std::string(64, 'a')}};
  }
  return {
      {"schema_version", 1},
      {"producer", {{"intaglio", "0.1.0"}}},
      {"name", "small"},
      {"family", "sd3"},
      {"source", "here"},
      {"license", "Apache-2.0"},
      {"layout", "forked"},
      {"dtype", "float32"},
      {"transformer",
       {{"graphs", {{"forked", transformer()}}},
        {"blocks", 6},
        {"patch_size", 2},
        {"channels", 32}}},
      {"massive_activations",
       {{"block", 2},
        {"channels", {3, 30}},
        {"ref", {0.5, -1.5}},
        {"found_by", "list"},
        {"massive", true}}},
      {"prediction_type", "velocity"},
      {"latent",
       {{"channels", 4},
        {"vae_scale_factor", 8},
        {"scaling_factor", 1.5305},
        {"shift_factor", 0.0609},
        {"max_height", 96},
        {"max_width", 64}}},
      {"scheduler",
       {{"type", "FlowMatchEulerDiscreteScheduler"}, {"shift", 3.0}, {"shift_terminal", nullptr}}},
      {"prompt",
       {{"max_sequence_length", 8},
        {"text_width", 16},
        {"encoders", {{"clip", encoder}}},
        {"text",
         {{{"encoders", {"clip"}}, {"length", 8}}, {{"encoders", Json::array()}, {"length", 3}}}},
        {"pooled", {"clip"}}}},
      {"defaults",
       {{"steps", 20},
        {"cfg_scale", 4},
        {"cfg_window", {0, 0.8}},
        {"dg_scale", 0.5},
        {"ma_keep", {0.5, 0}},
        {"height", 64},
        {"width", 48}}},
      {"files", files},
  };
}

// Returns good() with a graph that computes what depends on prompt and timestep alone.
inline Json hoisted() {
  Json json = good();
  Json& graphs = json["transformer"]["graphs"];
  graphs["conditioning"] =
      graph("transformer/conditioning.onnx",
            {tensor("timestep", {"conditions"}), tensor("pooled", {"conditions", 5}),
             tensor("text", {"prompts", 11, 16})},
            {tensor("modulation", {"conditions", 439296}), tensor("context", {"prompts", 11, 32})});
  Json& inputs = graphs["forked"]["inputs"];
  inputs[1] = tensor("modulation", {"base", 439296});
  inputs[2] = tensor("context", {"base", 11, 32});
  inputs.erase(3);
  json["files"]["transformer/conditioning.onnx"] = json["files"]["transformer/forked.onnx"];
  return json;
}

// Returns the bundle of good() or hoisted() with a VAE decoder, in either layout; "anchored" is
// forked with rows that are quantised as differences.
inline Bundle drawable(const std::string& layout, bool conditioned = false) {
  Json json = conditioned ? hoisted() : good();
  json["vae_decoder"] = graph("vae/model.onnx", {tensor("latent", {"n", 4, "h", "w"})},
                              {tensor("image", {"n", 3, "H", "W"})});
  json["files"]["vae/model.onnx"] = json["files"]["text/model.onnx"];
  if (layout == "anchored") {
    json["transformer"]["quantized"] = {
        {"scheme", "int8-dynamic"}, {"exact_channels", {3}}, {"error", 0.01}};
    json["transformer"]["graphs"]["forked"]["inputs"].push_back(
        tensor("anchor", {"base"}, "int64"));
  }
  if (layout == "dual") {
    json["layout"] = layout;
    Json base = json["transformer"]["graphs"]["forked"], degraded = base;
    for (int i = 0; i < 4; ++i) base["inputs"].erase(4);
    degraded["inputs"].erase(6);
    json["transformer"]["graphs"] = {{"base", base}, {"degraded", degraded}};
  }
  return parse_manifest(json.dump(), "bundle.json").bundle;
}

struct Change {
  std::string place;  // a JSON pointer
  Json value;         // a discarded value removes what is there
  const char* says;
};

inline void expect_refused(Json json, const Change& change) {
  if (change.value.is_discarded()) {
    json.patch_inplace(Json::array({{{"op", "remove"}, {"path", change.place}}}));
  } else {
    json[Json::json_pointer(change.place)] = change.value;
  }
  try {
    parse_manifest(json.dump(), "some/bundle.json");
    FAIL() << "was accepted";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("some/bundle.json"));
    EXPECT_THAT(error.what(), testing::HasSubstr(change.says));
  }
}

inline const Json removed(Json::value_t::discarded);

}  // namespace intaglio
