#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "intaglio/bundle.h"

namespace intaglio::cli {

namespace {

using Json = nlohmann::ordered_json;

Json describe(const Bundle& bundle) {
  const MassiveActivations& ma = bundle.massive_activations;
  const Guidance& guidance = bundle.defaults.guidance;
  std::uint64_t bytes = 0;
  for (const auto& [path, size] : bundle.file_bytes) bytes += size;
  return {
      {"name", bundle.name},
      {"family", bundle.family},
      {"source", bundle.source},
      {"license", bundle.license},
      {"layout", bundle.layout},
      {"dtype", bundle.dtype},
      {"blocks", bundle.blocks},
      {"channels", bundle.channels},
      {"massive_activations",
       {{"block", ma.block},
        {"channels", ma.channels},
        {"massive", ma.massive},
        {"found_by", ma.found_by},
        {"ratio", ma.ratio}}},
      {"scheduler", bundle.scheduler.type},
      {"max_sequence_length", bundle.prompt.max_sequence_length},
      {"largest_image", {bundle.latent.max_width, bundle.latent.max_height}},
      {"defaults",
       {{"steps", bundle.defaults.steps},
        {"cfg_scale", guidance.cfg_scale.first},
        {"cfg_window", {guidance.cfg_window.start, guidance.cfg_window.end}},
        {"dg_scale", guidance.dg_scale.first},
        {"dg_window", {guidance.dg_window.start, guidance.dg_window.end}},
        {"ma_keep", {guidance.ma_keep.first, guidance.ma_keep.last}},
        {"height", bundle.defaults.height},
        {"width", bundle.defaults.width}}},
      {"producer", bundle.producer},
      {"files", bundle.file_bytes},
      {"bytes", bytes},
  };
}

void print_row(const std::string& name, const Json& value) {
  std::printf("%-22s %s\n", name.c_str(),
              value.is_string() ? value.get<std::string>().c_str() : value.dump().c_str());
}

void print_people(const Json& json) {
  for (const auto& [name, value] : json.items()) {
    if (!value.is_object() || name == "producer") {
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
    std::filesystem::path bundle;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("inspect", "check a bundle's files and say what is in it");
  add_bundle(*command, flags->bundle);
  command->add_flag("--json", flags->json, "print JSON");
  command->callback([flags] {
    const Json json = describe(Bundle::open(flags->bundle));
    if (flags->json) {
      std::cout << json.dump(2) << std::endl;
    } else {
      print_people(json);
    }
  });
}

}  // namespace intaglio::cli
