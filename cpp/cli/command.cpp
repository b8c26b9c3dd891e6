#include "intaglio/command.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iostream>
#include <new>
#include <stdexcept>
#include <system_error>

#include "cli/commands.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

// Whatever a file name or ONNX Runtime puts into the message.
std::string one_line(std::string message) {
  for (char& c : message) c = (c >= 0 && c < ' ') || c == 0x7f ? ' ' : c;
  return message;
}

}  // namespace

namespace cli {

void add_bundle(CLI::App& command, std::filesystem::path& bundle) {
  command.add_option("bundle", bundle, "folder that `intaglio export` wrote")
      ->required()
      ->type_name("BUNDLE");
}

void add_run_flags(CLI::App& command, RunFlags& flags) {
  add_bundle(command, flags.bundle);
  add_flag(command, "--device", flags.backend.device, "NAME",
           "where to run: cpu; cuda or ort-tensorrt (ONNX Runtime's providers); auto: cuda where it "
           "works, else cpu [auto]");
  add_flag(command, "--threads", flags.backend.threads, "N",
           "threads to run with [0: one per core]");
  command
      .add_option("--onnxruntime", flags.backend.onnxruntime_library,
                  "ONNX Runtime's library, when it is not found by itself")
      ->type_name("LIBRARY");
}

void add_loop_flags(CLI::App& command, RunFlags& flags) {
  add_run_flags(command, flags);
  command.add_flag(
      "--prepack", flags.backend.prepack,
      "on the CPU, pack weights for its kernels at the start and not in each step: 5 to "
      "10 % off a step in float32, for a slower start and memory that processes do "
      "not share; for long runs");
}

Pipeline open_pipeline(const RunFlags& flags) {
  Pipeline pipeline = Pipeline::open(flags.bundle, flags.backend);
  const DeviceChoice& choice = pipeline.backend().choice;
  if (!choice.note.empty()) print_notes({"running on " + choice.device + ", since " + choice.note});
  return pipeline;
}

void print_notes(const std::vector<std::string>& notes) {
  for (const std::string& note : notes) std::cerr << "intaglio: note: " << one_line(note) << '\n';
}

}  // namespace cli

namespace {

int report(const std::string& message, ExitCode code) {
  std::cerr << "intaglio: " << one_line(message) << std::endl;
  return static_cast<int>(code);
}

int run(const CLI::App& app, const std::function<void()>& parse) {
  try {
    parse();
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return report(std::string(error.what()) + " (see intaglio --help, or intaglio generate --help)",
                  ExitCode::usage);
  } catch (const Error& error) {
    return report(error.what(), error.code());
  } catch (const std::bad_alloc&) {
    return report("out of memory: use a smaller size or batch", ExitCode::out_of_memory);
  } catch (const std::length_error&) {
    return report("out of memory: use a smaller size or batch", ExitCode::out_of_memory);
  } catch (const std::system_error& error) {  // file names that the system refuses, threads
    return report(error.what(), ExitCode::bad_input);
  } catch (const std::exception& error) {  // nothing that a caller did; still no crash
    return report(std::string("unexpected failure, please report it: ") + error.what(),
                  ExitCode::bad_input);
  }
  return static_cast<int>(ExitCode::ok);
}

}  // namespace

int run_command(const std::vector<std::string>& args) {
  CLI::App app{"Detail Guidance for diffusion transformers: draws images from an exported bundle.",
               "intaglio"};
  app.set_version_flag("--version", "intaglio " INTAGLIO_VERSION);
  app.require_subcommand(1);
  cli::add_generate(app);
  cli::add_embed(app);
  cli::add_inspect(app);
  cli::add_bench(app);
  std::cout.clear();
  std::clearerr(stdout);
  const int code = run(app, [&] {
    // CLI11 would say that a subcommand is required, not that this one is unknown.
    const auto named = [&](const CLI::App* command) { return command->get_name() == args[0]; };
    if (!args.empty() && !args[0].starts_with('-') && app.get_subcommands(named).empty()) {
      throw UsageError("there is no command \"" + args[0] + "\": intaglio --help lists them");
    }
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));  // CLI11 takes them reversed
  });
  errno = 0;
  std::cout.flush();
  std::fflush(stdout);
  if (code == 0 && (!std::cout || std::ferror(stdout))) {
    const std::string why = errno ? std::string(": ") + std::strerror(errno) : "";
    return report("cannot write to standard output" + why, ExitCode::bad_input);
  }
  return code;
}

}  // namespace intaglio
