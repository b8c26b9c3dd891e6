// Opening a bundle without waiting for gigabytes to be hashed.
#pragma once

#include <filesystem>
#include <functional>

#include "intaglio/bundle.h"

namespace intaglio {

struct OpenedBundle {
  Bundle bundle;
  // Compares the SHA-256 of the files that open_bundle left out. Throws InputError as Bundle::open.
  std::function<void()> check_large_files;
};

// As Bundle::open, but for the SHA-256 of large files, which are weights only.
OpenedBundle open_bundle(const std::filesystem::path& folder);

}  // namespace intaglio
