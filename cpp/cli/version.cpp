#include <nlohmann/json.hpp>
#include <string>

#include "cli/commands.h"
#include "intaglio/backend.h"
#include "intaglio/error.h"

namespace intaglio::cli {

namespace {

// What a report of a fault needs to name.
std::string version_json() {
  nlohmann::ordered_json about{{"intaglio", INTAGLIO_VERSION}};
  try {
    about["onnxruntime"] = onnxruntime_version({});
  } catch (const UnavailableError& error) {
    about["onnxruntime"] = error.what();
  }
  about["system"] = INTAGLIO_SYSTEM;
  about["compiler"] = INTAGLIO_COMPILER;
  // The path of a library may not be UTF-8, which JSON cannot hold.
  return about.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace

void add_version(CLI::App& app) {
  const CLI::Option* json =
      app.add_flag("--json")->description("with --version: print JSON, for a bug report");
  app.set_version_flag(
      "--version",
      [json] {
        return json->count() > 0 ? version_json() : std::string("intaglio " INTAGLIO_VERSION);
      },
      "print the version and exit");
}

}  // namespace intaglio::cli
