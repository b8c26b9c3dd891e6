// Flags that several subcommands share.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/parse.h"
#include "intaglio/backend.h"
#include "intaglio/pipeline.h"

namespace intaglio::cli {

// The flags of every subcommand that runs graphs.
struct RunFlags {
  std::filesystem::path bundle;
  BackendOptions backend;
};

// Adds --onnxruntime and --provider-library.
void add_library_flags(CLI::App& command, BackendOptions& backend);
void add_bundle(CLI::App& command, std::filesystem::path& bundle);
void add_run_flags(CLI::App& command, RunFlags& flags);
// Adds the flags of add_run_flags and those of subcommands that run the denoising loop.
void add_loop_flags(CLI::App& command, RunFlags& flags);

// Adds an option or an argument that is a path in UTF-8, which std::filesystem does not expect on
// Windows.
CLI::Option* add_path(CLI::App& command, const std::string& name, std::filesystem::path& path,
                      const std::string& help);
// Adds an option that may be given several times, with one path each.
CLI::Option* add_paths(CLI::App& command, const std::string& name,
                       std::vector<std::filesystem::path>& paths, const std::string& help);

// Opens the pipeline and prints its opening_notes().
Pipeline open_pipeline(const RunFlags& flags);

// Returns a note when `--device auto` could not use a device that the user may expect it to use,
// and one when the first run compiles the model.
std::vector<std::string> opening_notes(const Pipeline& pipeline);

// Loads the pipeline's graphs under a progress bar, if the device compiles them. Call this while
// Ctrl-C still ends the process: nothing is written yet, and what is compiled already is kept.
void compile(const Pipeline& pipeline);

// Adds a flag whose text cli::parse reads, so that all wrong values get the same kind of message.
template <typename T>
CLI::Option* add_flag(CLI::App& command, const std::string& flags, T& value,
                      const std::string& type, const std::string& help) {
  const std::string name = flags.substr(flags.rfind("--"));
  const auto read = [name, &value](const std::string& text) { parse(name, text, value); };
  return command.add_option_function<std::string>(flags, read, help)->type_name(type);
}

}  // namespace intaglio::cli
