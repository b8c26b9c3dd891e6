// Opens a bundle without waiting until gigabytes are hashed.
#pragma once

#include <filesystem>
#include <functional>

#include "intaglio/bundle.h"

namespace intaglio {

struct OpenedBundle {
  Bundle bundle;
  // Compares the SHA-256 of the files that open_bundle left out. Throws InputError as Bundle::open
  // does.
  std::function<void()> check_large_files;
};

// Does what Bundle::open does, but leaves out the SHA-256 of large files, which are always weights.
OpenedBundle open_bundle(const std::filesystem::path& folder);

}  // namespace intaglio
