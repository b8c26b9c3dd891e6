#pragma once

#include <filesystem>
#include <string>

namespace intaglio {

// Where engines that ONNX Runtime of `version` builds for a bundle are kept: in the bundle, in the
// user's cache folder where that is read-only, or nowhere (empty). The folder is made.
std::filesystem::path engine_cache(const std::filesystem::path& bundle, const std::string& version);

}  // namespace intaglio
