#include "backend/engine_cache.h"

#include <unistd.h>

#include <cstdlib>
#include <system_error>

#include "core/sha256.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

bool make_writable(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  return !error && ::access(folder.c_str(), W_OK) == 0;
}

// The XDG base directory specification: a relative path counts as none.
fs::path user_cache() {
  const auto absolute = [](const char* name) {
    const char* value = std::getenv(name);
    return value && *value == '/' ? fs::path(value) : fs::path();
  };
  if (const fs::path given = absolute("XDG_CACHE_HOME"); !given.empty()) return given;
  const fs::path home = absolute("HOME");
  return home.empty() ? home : home / ".cache";
}

}  // namespace

fs::path engine_cache(const fs::path& bundle, const std::string& version) {
  // ONNX Runtime looks at a graph's nodes but not at its weights to tell whether an engine is of
  // it. The manifest lists the SHA-256 of them all, so its own stands for everything.
  const std::string key = sha256_of_file(bundle / "bundle.json").substr(0, 16);
  const fs::path name = "onnxruntime-" + version + "-" + key;
  if (const fs::path own = bundle / "engines" / "ort-tensorrt" / name; make_writable(own))
    return own;
  const fs::path caches = user_cache();
  if (caches.empty()) return {};
  const fs::path user = caches / "intaglio" / "ort-tensorrt" / name;
  return make_writable(user) ? user : fs::path();
}

}  // namespace intaglio
