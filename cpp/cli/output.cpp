#include "cli/output.h"

#include <iostream>
#include <set>
#include <string>

#include "intaglio/error.h"
#include "intaglio/file.h"

namespace intaglio::cli {

namespace fs = std::filesystem;

void check_outputs(const std::vector<fs::path>& paths) {
  std::set<fs::path> seen;
  for (const fs::path& path : paths) {
    check_writable(path);
    std::error_code error;
    if (own_descriptor(path) || is_device_or_pipe(fs::status(path, error))) continue;
    if (!seen.insert(fs::weakly_canonical(fs::absolute(path, error), error)).second) {
      throw UsageError("two outputs go to " + path.string() + ": give each of them another name");
    }
  }
}

void print_written(const fs::path& path) {
  constexpr int standard_output = 1;
  if (own_descriptor(path) != standard_output) std::cout << path.string() << '\n';
}

fs::path numbered(const fs::path& path, std::size_t index, std::size_t count) {
  if (count == 1) return path;
  fs::path name = path.stem();
  name += "-";
  name += std::to_string(index);
  name += path.extension();
  return path.parent_path() / name;
}

}  // namespace intaglio::cli
