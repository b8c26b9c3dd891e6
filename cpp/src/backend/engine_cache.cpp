#include "backend/engine_cache.h"

#include <system_error>

#include "core/sha256.h"
#include "platform/file.h"
#include "platform/process.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

// Creates the folder if needed, and returns whether files can be written in it.
bool create_writable(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  return !error && platform::write_error(folder) == 0;
}

}  // namespace

fs::path make_engine_cache(const fs::path& bundle, const std::string& version) {
  // ONNX Runtime compares the nodes of a graph with those of a cached engine, but not the weights.
  // The manifest lists the SHA-256 of every file, so the hash of the manifest changes with any
  // weight.
  const std::string key = sha256_of_file(bundle / "bundle.json").substr(0, 16);
  const fs::path name = "onnxruntime-" + version + "-" + key;
  const fs::path in_bundle = bundle / "engines" / "tensorrt" / name;
  if (create_writable(in_bundle)) return in_bundle;
  const fs::path caches = platform::user_cache();
  if (caches.empty()) return {};
  const fs::path in_cache = caches / "intaglio" / "tensorrt" / name;
  return create_writable(in_cache) ? in_cache : fs::path();
}

}  // namespace intaglio
