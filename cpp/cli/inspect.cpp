#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <sstream>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/flags.h"
#include "cli/help_formatter.h"
#include "cli/plan.h"
#include "intaglio/bundle.h"
#include "intaglio/error.h"
#include "intaglio/file.h"

namespace intaglio::cli {

namespace {

using Json = nlohmann::ordered_json;

Json describe(const Defaults& defaults) {
  const Guidance& guidance = defaults.guidance;
  Json json = {{"steps", defaults.steps},
               {"cfg_scale", guidance.cfg_scale.first},
               {"cfg_window", {guidance.cfg_window.start, guidance.cfg_window.end}},
               {"dg_scale", guidance.dg_scale.first},
               {"dg_window", {guidance.dg_window.start, guidance.dg_window.end}},
               {"ma_keep", {guidance.ma_keep.first, guidance.ma_keep.last}},
               {"height", defaults.height},
               {"width", defaults.width}};
  if (defaults.distilled_guidance) json["distilled_guidance"] = *defaults.distilled_guidance;
  return json;
}

Json describe(const SkipSchedule& schedule) {
  Json json = {{"steps", schedule.steps},
               {"scheduler", schedule.scheduler},
               {"skipped", schedule.skipped},
               {"tolerance", schedule.tolerance}};
  const auto add = [&](const char* key, const std::optional<double>& value) {
    if (value) json[key] = *value;
  };
  add("evaluations", schedule.evaluations);
  add("median_error", schedule.median_error);
  add("largest_error", schedule.largest_error);
  return json;
}

// Adds the classes of the bundle, or its text encoders with the number of tokens that each reads.
void describe_condition(const Bundle& bundle, Json& json) {
  if (bundle.classes) {
    json["classes"] = {{"count", bundle.classes->count}, {"null", bundle.classes->null}};
    return;
  }
  json["max_sequence_length"] = bundle.prompt->max_sequence_length;
  json["text_encoders"] = Json::object();
  for (const auto& [name, encoder] : bundle.prompt->encoders) {
    json["text_encoders"][name] = encoder.max_length;
    if (encoder.quantized.empty()) continue;
    json["quantized_encoders"][name] = {{"scheme", encoder.quantized},
                                        {"error", encoder.quantization_error}};
  }
}

// Formats a profile as the flag --profile of `intaglio build` takes it.
std::string profile_text(const Json& profile) {
  std::string text;
  for (const auto& [axis, range] : profile.items()) {
    text += (text.empty() ? "" : ",") + axis + "=";
    for (std::size_t i = 0; i < range.size(); ++i) {
      if (i > 0) text += ':';
      text += std::to_string(range[i].get<std::int64_t>());
    }
  }
  return text;
}

// Returns the fields of engine.json by which a user chooses engines.
Json describe_engine(const std::filesystem::path& path) {
  try {
    const Json report = Json::parse(read_file(path));
    Json json = Json::object();
    for (const char* key : {"backend", "version", "precision"})
      json[key] = report.at(key).get<std::string>();
    json["targets"] = report.at("targets").get<std::vector<std::string>>();
    json["flags"] = report.value("flags", std::vector<std::string>());
    json["profiles"] = report.at("profiles");
    for (const Json& profile : json["profiles"]) profile_text(profile);  // throws if damaged
    json["plans"] = Json::object();
    for (const auto& [graph, component] : report.at("components").items())
      json["plans"][graph] = component.at("plan_bytes").get<std::uint64_t>();
    return json;
  } catch (const Json::exception&) {
    return {{"broken", "engine.json is not what intaglio build writes: build the engines again"}};
  }
}

// Describes all engines of the bundle, by the names of their folders in engines/.
Json describe_engines(const std::filesystem::path& bundle) {
  std::error_code error;
  std::set<std::filesystem::path> folders;
  for (const auto& entry : std::filesystem::directory_iterator(bundle / "engines", error))
    if (std::filesystem::exists(entry.path() / "engine.json", error)) folders.insert(entry.path());
  Json engines = Json::object();
  for (const auto& folder : folders)
    engines[folder.filename().string()] = describe_engine(folder / "engine.json");
  return engines;
}

Json describe_quantized(const Bundle& bundle) {
  Json json = {{"scheme", bundle.quantized}};
  if (bundle.transformer().takes(Role::anchor) || bundle.quantized == "int8-dynamic") {
    json["activations"] = bundle.transformer().takes(Role::anchor)
                              ? "a scale per token, D_0 and D_m as differences from D_c"
                              : "a scale per tensor";
  }
  for (const auto& [of, error] : bundle.quantization_errors) json["error_" + of] = error;
  return json;
}

Json describe(const References& references) {
  Json json = {{"most", references.most}, {"only", references.only}};
  if (!references.sizes.empty()) json["sizes"] = references.sizes;
  if (references.max_area > 0) json["max_area"] = references.max_area;
  if (references.min_side > 0) json["min_side"] = references.min_side;
  if (references.max_aspect > 0) json["max_aspect"] = references.max_aspect;
  return json;
}

Json describe(const Bundle& bundle) {
  const MassiveActivations& ma = bundle.massive_activations;
  const Latent& latent = bundle.latent;
  std::uint64_t bytes = 0;
  for (const auto& [path, size] : bundle.file_bytes) bytes += size;
  Json json = {{"name", bundle.name},
               {"family", bundle.family},
               {"source", bundle.source},
               {"license", bundle.license},
               {"layout", name_of(bundle.layout)},
               {"dtype", bundle.dtype},
               {"blocks", bundle.blocks},
               {"channels", bundle.hidden_size},
               {"observed", bundle.observed()},
               {"massive_activations",
                {{"block", ma.block},
                 {"channels", ma.channels},
                 {"massive", ma.massive},
                 {"found_by", ma.found_by},
                 {"ratio", ma.ratio}}},
               {"prediction_type", name_of(bundle.prediction_type)},
               {"scheduler", bundle.scheduler.type}};
  if (!bundle.quantized.empty()) json["quantized"] = describe_quantized(bundle);
  if (!bundle.max_abs.empty()) json["max_abs"] = bundle.max_abs;
  describe_condition(bundle, json);
  json[latent.fixed_size ? "only_image" : "largest_image"] = {latent.max_width, latent.max_height};
  json["packed_latents"] = latent.packed;
  if (bundle.references) json["references"] = describe(*bundle.references);
  json["defaults"] = describe(bundle.defaults);
  json["skipping"] = Json::array();
  for (const SkipSchedule& schedule : bundle.skipping)
    json["skipping"].push_back(describe(schedule));
  json["producer"] = bundle.producer;
  json["files"] = bundle.file_bytes;
  json["bytes"] = bytes;
  json["engines"] = describe_engines(bundle.folder);
  return json;
}

void print_row(const std::string& name, const Json& value) {
  const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  std::printf("%-22s %s\n", one_line(name).c_str(), one_line(text).c_str());
}

// Summarises the engines of one folder. Its name, which is printed before, says their backend and
// GPU.
std::string engines_line(const Json& engines) {
  if (engines.contains("broken")) return engines["broken"].get<std::string>();
  const std::size_t count = engines["plans"].size();
  std::uint64_t bytes = 0;
  for (const auto& [graph, size] : engines["plans"].items()) bytes += size.get<std::uint64_t>();
  std::string line = "version " + engines["version"].get<std::string>() + ", " +
                     std::to_string(count) + (count == 1 ? " plan, " : " plans, ") +
                     std::to_string(bytes) + " bytes";
  for (const Json& profile : engines["profiles"]) line += ", " + profile_text(profile);
  for (const Json& flag : engines["flags"]) line += ", " + flag.get<std::string>();
  return line;
}

// Summarises a schedule of skipped steps.
std::string skipping_line(const Json& schedule) {
  std::ostringstream line;
  line << schedule["steps"] << " steps of " << schedule["scheduler"].get<std::string>()
       << ": skips ";
  const char* separator = "";
  for (const Json& step : schedule["skipped"]) line << std::exchange(separator, ",") << step;
  line << "; tolerance " << schedule["tolerance"];
  if (schedule.contains("evaluations"))
    line << "; " << schedule["evaluations"] << " evaluations of the model in the mean";
  const auto percent = [&](const char* key) { return 100 * schedule[key].get<double>(); };
  if (schedule.contains("median_error"))
    line << "; error of the final latents " << percent("median_error") << " % in the median";
  if (schedule.contains("largest_error")) line << ", " << percent("largest_error") << " % at most";
  return line.str();
}

void print_text(const Json& json) {
  for (const auto& [name, value] : json.items()) {
    if (name == "engines") {
      for (const auto& [folder, engines] : value.items())
        print_row(name, folder + ": " + engines_line(engines));
      continue;
    }
    if (name == "skipping") {
      for (const Json& schedule : value) print_row(name, skipping_line(schedule));
      continue;
    }
    if (name == "max_abs") continue;  // one number per block is too long for a line
    if (!value.is_object() || value.empty() || name == "producer") {
      print_row(name, value);
      continue;
    }
    std::printf("%s\n", name.c_str());
    for (const auto& [key, item] : value.items()) print_row("  " + key, item);
  }
}

}  // namespace

void add_inspect(CLI::App& app) {
  struct Flags {
    RunFlags run;
    PlanFlags plan;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("inspect", "check the files of a bundle and describe it");
  command->footer(
      "It compares the size and SHA-256 of every file with the manifest, then prints the "
      "manifest:\n"
      "the model, the block m after which the branches fork, the massive channels, the largest\n"
      "image, the defaults of `intaglio generate`, the steps of --skip auto, and the engines. "
      "With\n--plan it prints the memory of a run instead.\n"
      "Example: intaglio inspect bundle --json");
  command
      ->add_flag("--json", flags->json,
                 "print JSON, which also has the largest activation of every block")
      ->group("Output");
  add_plan_flags(*command, flags->plan);
  add_run_flags(*command, flags->run);
  move_help_flag_to_end(*command);
  command->callback([flags] {
    const Bundle bundle = Bundle::open(flags->run.bundle);
    const Json json =
        flags->plan.wanted ? describe_plan(bundle, flags->run, flags->plan) : describe(bundle);
    if (flags->json) {
      // The folder of engines may have a name that is not UTF-8, which JSON cannot hold.
      std::cout << json.dump(2, ' ', false, Json::error_handler_t::replace) << std::endl;
    } else if (flags->plan.wanted) {
      print_plan(json);
    } else {
      print_text(json);
    }
  });
}

}  // namespace intaglio::cli
