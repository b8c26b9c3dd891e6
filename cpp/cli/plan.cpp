#include "cli/plan.h"

#include <cstdio>
#include <optional>
#include <utility>

#include "intaglio/backend.h"
#include "intaglio/error.h"
#include "intaglio/memory_plan.h"

namespace intaglio::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kPlanGroup = "Memory";

// Reads WIDTHxHEIGHT.
void read_size(const std::string& text, GenerateOptions& options) {
  if (text.empty()) return;
  const std::size_t by = text.find('x');
  if (by == std::string::npos)
    throw UsageError("--size \"" + text + "\" is not a size: give WIDTHxHEIGHT, such as 512x512");
  parse("--size", text.substr(0, by), options.width);
  parse("--size", text.substr(by + 1), options.height);
}

void print_row(const std::string& part, const std::string& weights, const std::string& activations,
               const std::string& total) {
  std::printf("%-22s %10s %12s %10s\n", part.c_str(), weights.c_str(), activations.c_str(),
              total.c_str());
}

std::string bytes_of(const Json& json, const char* key) {
  return byte_text(json.at(key).get<std::uint64_t>());
}

std::string images_of(const Json& plan) {
  const auto images = plan.at("images").get<std::int64_t>(),
             at_once = plan.at("images_at_once").get<std::int64_t>();
  if (images == 1) return "";
  return ", " + std::to_string(images) + " images" +
         (at_once < images ? " in groups of " + std::to_string(at_once) : " at once");
}

}  // namespace

void add_plan_flags(CLI::App& command, PlanFlags& flags) {
  command
      .add_flag("--plan", flags.wanted,
                "print what drawing with the bundle's guidance takes in memory, part by "
                "part, in place of the manifest; nothing is loaded")
      ->group(kPlanGroup);
  add_flag(command, "--size", flags.size, "WIDTHxHEIGHT",
           "size of the image for --plan; the bundle's default if not given")
      ->group(kPlanGroup);
  add_flag(command, "--batch", flags.batch, "N", "number of images for --plan [1]")
      ->group(kPlanGroup);
}

Json describe_plan(const Bundle& bundle, const RunFlags& run, const PlanFlags& flags) {
  GenerateOptions options;
  read_size(flags.size, options);
  options.batch = flags.batch;
  const std::string device = make_backend(run.backend, bundle)->choice.device;
  const MemoryPlan plan =
      plan_memory(bundle, options, memory_limit(run.backend.max_memory, device));
  Json json = {{"device", plan.device}};
  if (plan.limit > 0) json["max_memory"] = plan.limit;
  json["images"] = options.batch;
  json["images_at_once"] = plan.images_at_once;
  json["in_turn"] = plan.in_turn;
  json["vae_tile"] = plan.vae_tile;
  json["program"] = plan.program;
  json["parts"] = Json::array();
  for (const MemoryPhase& phase : plan.phases)
    json["parts"].push_back({{"part", phase.part},
                             {"device", phase.on_cpu ? "cpu" : plan.device},
                             {"weights", phase.weights},
                             {"activations", phase.activations}});
  json["peak"] = plan.peak();
  return json;
}

void print_plan(const Json& plan) {
  const bool in_turn = plan.at("in_turn").get<bool>();
  std::printf("On %s%s, %s%s:\n\n", plan.at("device").get<std::string>().c_str(),
              plan.contains("max_memory") ? (", of " + bytes_of(plan, "max_memory")).c_str() : "",
              in_turn ? "each part is let go before the next is loaded" : "all parts stay loaded",
              images_of(plan).c_str());
  print_row("part", "weights", "activations", "together");
  if (plan.at("program").get<std::uint64_t>() > 0)
    print_row("program", "", "", bytes_of(plan, "program"));
  for (const Json& part : plan.at("parts")) {
    std::string name = part.at("part").get<std::string>();
    if (part.at("device") != plan.at("device")) name += " (cpu)";
    print_row(name, bytes_of(part, "weights"), bytes_of(part, "activations"),
              byte_text(part.at("weights").get<std::uint64_t>() +
                        part.at("activations").get<std::uint64_t>()));
  }
  print_row("peak", "", "", bytes_of(plan, "peak"));
}

}  // namespace intaglio::cli
