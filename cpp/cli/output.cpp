#include "cli/output.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "intaglio/error.h"

namespace intaglio::cli {

void check_writable(const std::filesystem::path& path) {
  if (path.empty()) return;
  const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const auto refuse = [&](const std::string& why) {
    throw InputError("cannot write " + path.string() + ": " + why);
  };
  if (!std::filesystem::is_directory(folder)) refuse("there is no folder " + folder.string());
  if (::access(folder.c_str(), W_OK) != 0) refuse(std::strerror(errno));
  if (std::filesystem::is_directory(path)) refuse("it is a folder");
}

std::filesystem::path numbered(const std::filesystem::path& path, std::size_t index,
                               std::size_t count) {
  if (count == 1) return path;
  auto result = path;
  return result.replace_filename(path.stem().string() + "-" + std::to_string(index) +
                                 path.extension().string());
}

}  // namespace intaglio::cli
