// The subcommands. Each function adds one to the application, with its flags and its callback.
#pragma once

#include <CLI/CLI.hpp>

namespace intaglio::cli {

void add_generate(CLI::App& app);
void add_embed(CLI::App& app);
void add_features(CLI::App& app);
void add_inspect(CLI::App& app);
void add_bench(CLI::App& app);
void add_devices(CLI::App& app);
void add_cache(CLI::App& app);

}  // namespace intaglio::cli
