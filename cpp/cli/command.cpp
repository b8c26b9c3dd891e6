#include "intaglio/command.h"

#include <iostream>
#include <new>

#include "cli/commands.h"
#include "intaglio/error.h"

namespace intaglio {

namespace cli {

void add_bundle(CLI::App& command, std::filesystem::path& bundle) {
  command.add_option("bundle", bundle, "folder that `intaglio export` wrote")
      ->required()
      ->type_name("BUNDLE");
}

void add_run_flags(CLI::App& command, RunFlags& flags) {
  add_bundle(command, flags.bundle);
  add_flag(command, "--device", flags.backend.device, "NAME",
           "where to run: cpu, or auto for the best there is [cpu]");
  add_flag(command, "--threads", flags.backend.threads, "N",
           "threads to run with [0: one per core]");
  command
      .add_option("--onnxruntime", flags.backend.onnxruntime_library,
                  "ONNX Runtime's library, when it is not found by itself")
      ->type_name("LIBRARY");
}

}  // namespace cli

namespace {

int report(const std::string& message, ExitCode code) {
  std::cerr << "intaglio: " << message << std::endl;
  return static_cast<int>(code);
}

}  // namespace

int run_command(const std::vector<std::string>& args) {
  CLI::App app{"Detail Guidance for diffusion transformers: draws images from an exported bundle.",
               "intaglio"};
  app.set_version_flag("--version", "intaglio " INTAGLIO_VERSION);
  app.require_subcommand(1);
  cli::add_generate(app);
  cli::add_inspect(app);
  cli::add_bench(app);
  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));  // CLI11 takes them reversed
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return report(std::string(error.what()) + " (see intaglio --help, or intaglio generate --help)",
                  ExitCode::usage);
  } catch (const Error& error) {
    return report(error.what(), error.code());
  } catch (const std::bad_alloc&) {
    return report("out of memory: use a smaller size or batch", ExitCode::out_of_memory);
  }
  return static_cast<int>(ExitCode::ok);
}

}  // namespace intaglio
