#include "backend/vendor_libraries.h"

#include <algorithm>
#include <system_error>

#include "platform/shared_library.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

// Returns the name in "NAME: cannot open shared object file", or an empty string.
std::string missing_library(const std::string& message) {
  const std::size_t end = message.find(": cannot open shared object file");
  if (end == std::string::npos) return "";
  const std::size_t before = message.find_last_of(" \n", end);
  const std::size_t start = before == std::string::npos ? 0 : before + 1;
  return message.substr(start, end - start);
}

fs::path find_in(const std::vector<fs::path>& folders, const std::string& name) {
  for (const fs::path& folder : folders) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(folder, error)) {
      const std::string found = entry.path().filename().string();
      if (found == name || found.starts_with(name + ".")) return entry.path();
    }
  }
  return {};
}

}  // namespace

bool load_missing_library(const std::string& message, const std::vector<fs::path>& folders) {
  const std::string name = missing_library(message);
  if (name.empty() || name.find('/') != std::string::npos) return false;
  const fs::path path = find_in(folders, name);
  if (path.empty()) return false;
  // The library stays loaded, because the provider that needs it does.
  for (std::string last = name; !platform::load_library(path);) {
    const std::string why = platform::load_error(path);
    if (missing_library(why) == last || !load_missing_library(why, folders)) return false;
    last = missing_library(why);
  }
  return true;
}

std::vector<fs::path> nvidia_package_folders(const fs::path& packages) {
  std::vector<fs::path> folders;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(packages / "nvidia", error))
    if (fs::is_directory(entry.path() / "lib", error)) folders.push_back(entry.path() / "lib");
  std::ranges::sort(folders);
  return folders;
}

}  // namespace intaglio
