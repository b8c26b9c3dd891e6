#include "intaglio/command.h"

#include <algorithm>
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
#include "cli/version.h"
#include "intaglio/error.h"
#include "intaglio/options.h"

namespace intaglio {

namespace {

using cli::print_error;

constexpr auto kOutOfMemory = "out of memory: use a smaller size or batch";

// Returns all flags of the command, without their dashes.
std::vector<std::string> flags_of(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    const auto& own = option->get_lnames();
    names.insert(names.end(), own.begin(), own.end());
  }
  return names;
}

// Says which of `args` is one too many, and what may have been meant.
std::string unexpected(const CLI::App& command, const std::vector<std::string>& args,
                       const std::vector<std::string>& left_over) {
  const auto first = std::ranges::find_first_of(args, left_over);
  const std::string word = first == args.end() ? left_over.front() : *first;
  if (!word.starts_with('-')) {
    return "\"" + word + "\" is one word too many for intaglio " + command.get_name() +
           ": put a text with spaces into quotation marks";
  }
  const std::string flag = word.substr(0, word.find('='));
  const std::string name = flag.substr(std::min(flag.find_first_not_of('-'), flag.size()));
  return "there is no option " + flag + " of intaglio " + command.get_name() +
         meant_option(name, flags_of(command), "--");
}

// Calls `parse`, which also runs the subcommand, and returns the exit code.
int run(const CLI::App& app, const std::vector<std::string>& args,
        const std::function<void()>& parse) {
  const auto command = [&]() -> const CLI::App& {
    const auto chosen = app.get_subcommands();
    return chosen.empty() ? app : *chosen.front();
  };
  const auto refuse = [&](const std::string& why) {
    const std::string name = &command() == &app ? "" : " " + command().get_name();
    return print_error(why + "; `intaglio" + name + " --help` lists the options", ExitCode::usage);
  };
  try {
    parse();
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    // CLI11 lists them backwards, or complains of what is missing first.
    const auto left_over = app.remaining(true);
    return refuse(left_over.empty() ? error.what() : unexpected(command(), args, left_over));
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
      std::string(
          "`intaglio SUBCOMMAND --help` explains the options of a subcommand.\n"
          "Example: intaglio generate bundle --prompt \"a dark ankle boot\" -o boot.png\n\n") +
      cli::exit_code_help());
  app.add_flag("--json")->description("with --version: print JSON, for a bug report");
  // CLI11 may call this before it has come to --json.
  const auto version = [&] {
    return cli::version_text(std::ranges::find(args, "--json") != args.end());
  };
  app.set_version_flag("--version", version, "print the version and exit");
  app.require_subcommand(1);
  cli::add_generate(app);
  cli::add_embed(app);
  cli::add_features(app);
  cli::add_inspect(app);
  cli::add_bench(app);
  cli::add_devices(app);
  cli::add_cache(app);
  std::cout.clear();
  std::clearerr(stdout);
  const int code = run(app, args, [&] {
    // For an unknown subcommand CLI11 would only say that a subcommand is required.
    const auto named = [&](const CLI::App* command) { return command->get_name() == args[0]; };
    if (!args.empty() && !args[0].starts_with('-') && app.get_subcommands(named).empty()) {
      std::vector<std::string> names;
      for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
        names.push_back(command->get_name());
      throw UsageError("there is no command \"" + args[0] + "\"" + meant_option(args[0], names) +
                       ": intaglio --help lists them");
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
