#pragma once

#include <filesystem>
#include <string>

namespace intaglio {

// Creates the folder for the engines that ONNX Runtime of this version builds for a bundle, and
// returns its path. It is in the bundle, or in the user's cache folder when the bundle is
// read-only. Returns an empty path when neither can be written.
std::filesystem::path make_engine_cache(const std::filesystem::path& bundle,
                                        const std::string& version);

}  // namespace intaglio
