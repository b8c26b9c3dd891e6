#include "cli/version.h"

#include <nlohmann/json.hpp>

#include "intaglio/backend.h"
#include "intaglio/error.h"

namespace intaglio::cli {

std::string version_text(bool json) {
  if (!json) return "intaglio " INTAGLIO_VERSION;
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

}  // namespace intaglio::cli
