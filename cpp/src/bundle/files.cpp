#include "bundle/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "core/sha256.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

bool same_content(const struct stat& a, const struct stat& b) {
  return a.st_size == b.st_size && a.st_mtim.tv_sec == b.st_mtim.tv_sec &&
         a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
}

}  // namespace

BundleFiles::~BundleFiles() {
  for (auto& [name, file] : files_)
    if (!file.mapped.empty()) ::munmap(file.mapped.data(), file.mapped.size());
}

void BundleFiles::open(const std::string& name, std::uint64_t bytes) {
  const auto refuse = [&](int error) {
    throw InputError("cannot read " + path(name).string() + ": " + std::strerror(error) +
                     "; the bundle is incomplete, copy or export it again");
  };
  // Without O_NONBLOCK this would wait for the writer of a pipe.
  File file{Descriptor(::open(path(name).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK))};
  if (!file.descriptor.is_open() || ::fstat(file.descriptor.number(), &file.opened) != 0)
    refuse(errno);
  if (S_ISDIR(file.opened.st_mode)) refuse(EISDIR);
  if (!S_ISREG(file.opened.st_mode)) refuse(EINVAL);
  if (std::cmp_not_equal(file.opened.st_size, bytes)) {
    throw InputError(path(name).string() + " has " + std::to_string(file.opened.st_size) +
                     " bytes where bundle.json says " + std::to_string(bytes) +
                     ": copy or export the bundle again");
  }
  files_.emplace(name, std::move(file));
}

std::string BundleFiles::sha256(const std::string& name) const {
  return sha256_of(files_.at(name).descriptor, path(name));
}

std::string BundleFiles::read(const std::string& name) const {
  const std::span<char> content = map(name);
  return {content.begin(), content.end()};
}

std::span<char> BundleFiles::map(const std::string& name) const {
  const std::scoped_lock lock(mapping_);
  const File& file = files_.at(name);
  const auto bytes = static_cast<std::size_t>(file.opened.st_size);
  if (file.mapped.empty() && bytes > 0) {
    void* start = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file.descriptor.number(), 0);
    if (start == MAP_FAILED) fail_file("read", path(name), errno);
    file.mapped = {static_cast<char*>(start), bytes};
  }
  return file.mapped;
}

std::vector<std::string> BundleFiles::weights(const std::string& graph) const {
  const std::string folder = graph.substr(0, graph.rfind('/') + 1);
  std::vector<std::string> names;
  for (const auto& [name, file] : files_)
    if (name.starts_with(folder) && !name.ends_with(".onnx")) names.push_back(name);
  return names;
}

void BundleFiles::check_unchanged() const {
  for (const auto& [name, file] : files_) {
    struct stat now{};
    if (::fstat(file.descriptor.number(), &now) == 0 && same_content(now, file.opened)) continue;
    throw InputError(path(name).string() +
                     " was overwritten after the bundle was opened: open the bundle again, and "
                     "replace one by renaming its folder");
  }
}

bool BundleFiles::in_place(const std::string& graph) const {
  std::error_code error;
  const auto folder_of = [&](const std::string& name) {
    return std::filesystem::canonical(path(name), error).parent_path();
  };
  const std::filesystem::path folder = folder_of(graph);
  std::vector<std::string> names = weights(graph);
  names.push_back(graph);
  return std::ranges::all_of(names, [&](const std::string& name) {
    const struct stat& opened = files_.at(name).opened;
    struct stat now{};
    return ::stat(path(name).c_str(), &now) == 0 && now.st_dev == opened.st_dev &&
           now.st_ino == opened.st_ino && folder_of(name) == folder && !error;
  });
}

}  // namespace intaglio
