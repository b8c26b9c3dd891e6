#include "cli/output.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <set>
#include <string>

#include "intaglio/error.h"
#include "intaglio/file.h"

namespace intaglio::cli {

namespace fs = std::filesystem;

namespace {

void check_writable(const fs::path& path) {
  const auto refuse = [&](const std::string& why) {
    throw InputError("cannot write " + path.string() + ": " + why);
  };
  std::error_code error;
  const auto folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  if (!fs::is_directory(folder, error)) refuse("there is no folder " + folder.string());
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status) || path.filename().empty()) refuse("it is a folder");
  if (!fs::status_known(status)) refuse(error.message());
  const fs::path& target = is_device_or_pipe(status) ? path : folder;
  if (::access(target.c_str(), W_OK) != 0) refuse(std::strerror(errno));
}

}  // namespace

void check_outputs(const std::vector<fs::path>& paths) {
  std::set<fs::path> seen;
  for (const fs::path& path : paths) {
    check_writable(path);
    std::error_code error;
    if (is_device_or_pipe(fs::status(path, error))) continue;
    if (!seen.insert(fs::weakly_canonical(fs::absolute(path, error), error)).second) {
      throw UsageError("two outputs go to " + path.string() + ": give each of them another name");
    }
  }
}

fs::path numbered(const fs::path& path, std::size_t index, std::size_t count) {
  if (count == 1) return path;
  auto result = path;
  return result.replace_filename(path.stem().string() + "-" + std::to_string(index) +
                                 path.extension().string());
}

}  // namespace intaglio::cli
