#include <cstdio>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/help_formatter.h"
#include "intaglio/compiled_cache.h"

namespace intaglio::cli {

namespace {

double megabytes(std::uint64_t bytes) { return static_cast<double>(bytes) / 1e6; }

void list() {
  std::uint64_t total = 0;
  for (const CompiledSize& entry : list_compiled()) {
    std::printf("%10.1f MB  %s%s\n", megabytes(entry.bytes), one_line(entry.name).c_str(),
                entry.in_use ? " (in use)" : "");
    total += entry.bytes;
  }
  std::printf("%10.1f MB  in %s, of at most %.0f MB\n", megabytes(total),
              one_line(compiled_cache().string()).c_str(), megabytes(kCompiledLimit));
}

void clear() {
  std::uint64_t total = 0;
  for (const CompiledSize& entry : clear_compiled()) total += entry.bytes;
  std::printf("removed %.1f MB from %s\n", megabytes(total),
              one_line(compiled_cache().string()).c_str());
  for (const CompiledSize& entry : list_compiled())
    print_notes({"a process is using " + entry.name + ", so it was left"});
}

}  // namespace

void add_cache(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("cache", "list what devices have compiled and keep, or remove it");
  command->footer(
      "TensorRT, TensorRT-RTX and OpenVINO compile a model for the device when it first runs there,"
      "\nand keep the result for the next time. When it takes more room than the limit, what was "
      "not\nused for longest is removed.\n"
      "Example: intaglio cache --clear");
  const auto removes = std::make_shared<bool>(false);
  command->add_flag("--clear", *removes, "remove all of it")->group("Output");
  move_help_flag_to_end(*command);
  command->callback([removes] { *removes ? clear() : list(); });
}

}  // namespace intaglio::cli
