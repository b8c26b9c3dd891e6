// Libraries that execution providers are linked with and that pip installs where the dynamic loader
// does not look.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace intaglio {

// Loads a library that the dynamic loader reported as missing in `message`, from the first of
// `folders` that has it under this name or with a longer version, and everything that it needs in
// turn. A library that is loaded so is found by its name afterwards. Returns whether the same
// attempt is worth repeating.
bool load_missing_library(const std::string& message,
                          const std::vector<std::filesystem::path>& folders);

// Returns the folders of NVIDIA's packages for CUDA and cuDNN in the folder of Python packages.
std::vector<std::filesystem::path> nvidia_package_folders(const std::filesystem::path& packages);

}  // namespace intaglio
