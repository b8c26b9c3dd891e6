// One function a subcommand: adds it to the application with its flags and its callback.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/parse.h"
#include "intaglio/backend.h"
#include "intaglio/pipeline.h"

namespace intaglio::cli {

// Flags that every subcommand which runs graphs takes.
struct RunFlags {
  std::filesystem::path bundle;
  BackendOptions backend;
};
void add_bundle(CLI::App& command, std::filesystem::path& bundle);
void add_run_flags(CLI::App& command, RunFlags& flags);
// The same, and those of subcommands that run the denoising loop.
void add_loop_flags(CLI::App& command, RunFlags& flags);
// Says on stderr what kept `auto` from a better device, where that is worth knowing.
Pipeline open_pipeline(const RunFlags& flags);
// A flag read by cli::parse, so that every wrong value gets the same kind of sentence.
template <typename T>
CLI::Option* add_flag(CLI::App& command, const std::string& flags, T& value,
                      const std::string& type, const std::string& help) {
  const std::string name = flags.substr(flags.rfind("--"));
  const auto read = [name, &value](const std::string& text) { parse(name, text, value); };
  return command.add_option_function<std::string>(flags, read, help)->type_name(type);
}

// What the user should know and no error is, on stderr.
void print_notes(const std::vector<std::string>& notes);

void add_generate(CLI::App& app);
void add_embed(CLI::App& app);
void add_inspect(CLI::App& app);
void add_bench(CLI::App& app);

}  // namespace intaglio::cli
