#include "intaglio/command.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <new>
#include <stdexcept>
#include <system_error>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/help_formatter.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

using cli::print_error;

constexpr auto kOutOfMemory = "out of memory: use a smaller size or batch";

// Calls `parse`, which also runs the subcommand, and returns the exit code.
int run(const CLI::App& app, const std::function<void()>& parse) {
  try {
    parse();
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    return print_error(
        std::string(error.what()) + "; `intaglio SUBCOMMAND --help` lists the options",
        ExitCode::usage);
  } catch (const Error& error) {
    return print_error(error.what(), error.code());
  } catch (const std::bad_alloc&) {
    return print_error(kOutOfMemory, ExitCode::out_of_memory);
  } catch (const std::length_error&) {
    return print_error(kOutOfMemory, ExitCode::out_of_memory);
  } catch (const std::system_error& error) {  // for example a file name that is too long
    return print_error(error.what(), ExitCode::bad_input);
  } catch (const std::exception& error) {  // a bug, which still should not look like a crash
    return print_error(std::string("unexpected failure, please report it: ") + error.what(),
                       ExitCode::bad_input);
  }
  return static_cast<int>(ExitCode::ok);
}

}  // namespace

int run_command(const std::vector<std::string>& args) {
  CLI::App app{
      "Draw images with diffusion transformers and Detail Guidance, from an exported bundle.",
      "intaglio"};
  app.formatter(std::make_shared<cli::HelpFormatter>());
  app.set_help_flag("-h,--help", "print this help and exit");
  app.footer(
      "`intaglio SUBCOMMAND --help` explains the options of a subcommand.\n"
      "Example: intaglio generate bundle --prompt \"a dark ankle boot\" -o boot.png");
  app.set_version_flag("--version", "intaglio " INTAGLIO_VERSION, "print the version and exit");
  app.require_subcommand(1);
  cli::add_generate(app);
  cli::add_embed(app);
  cli::add_inspect(app);
  cli::add_bench(app);
  cli::add_devices(app);
  std::cout.clear();
  std::clearerr(stdout);
  const int code = run(app, [&] {
    // For an unknown subcommand CLI11 would only say that a subcommand is required.
    const auto named = [&](const CLI::App* command) { return command->get_name() == args[0]; };
    if (!args.empty() && !args[0].starts_with('-') && app.get_subcommands(named).empty()) {
      throw UsageError("there is no command \"" + args[0] + "\": intaglio --help lists them");
    }
    app.parse(
        std::vector<std::string>(args.rbegin(), args.rend()));  // in reverse, as CLI11 expects
  });
  errno = 0;
  std::cout.flush();
  std::fflush(stdout);
  if (code == 0 && (!std::cout || std::ferror(stdout))) {
    const std::string why = errno ? std::string(": ") + std::strerror(errno) : "";
    return print_error("cannot write to standard output" + why, ExitCode::bad_input);
  }
  return code;
}

}  // namespace intaglio
