// The memory plan that `intaglio inspect --plan` prints.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/flags.h"
#include "intaglio/bundle.h"

namespace intaglio::cli {

struct PlanFlags {
  bool wanted = false;
  std::string size;  // WIDTHxHEIGHT; empty: the bundle's default
  int batch = 1;     // images
};

// Adds --plan, --size and --batch.
void add_plan_flags(CLI::App& command, PlanFlags& flags);

// Plans a run on the device of the flags. Throws what making the backend and plan_memory()
// throw.
nlohmann::ordered_json describe_plan(const Bundle& bundle, const RunFlags& run,
                                     const PlanFlags& flags);
void print_plan(const nlohmann::ordered_json& plan);

}  // namespace intaglio::cli
