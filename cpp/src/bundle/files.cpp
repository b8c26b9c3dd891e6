#include "bundle/files.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "core/sha256.h"
#include "intaglio/error.h"
#include "platform/mapping.h"

namespace intaglio {

namespace {

using platform::FileStatus;

bool same_content(const FileStatus& a, const FileStatus& b) {
  return a.bytes == b.bytes && a.changed == b.changed;
}

bool same_file(const FileStatus& a, const FileStatus& b) {
  return a.volume == b.volume && a.number == b.number;
}

}  // namespace

BundleFiles::~BundleFiles() {
  for (auto& [name, file] : files_)
    if (!file.mapped.empty()) platform::unmap(file.mapped);
}

void BundleFiles::open(const std::string& name, std::uint64_t bytes) {
  const auto refuse = [&](int error) {
    throw InputError("cannot read " + path(name).string() + ": " + std::strerror(error) +
                     "; the bundle is incomplete, copy or export it again");
  };
  Descriptor descriptor(platform::open_at_once(path(name)));
  const auto opened = descriptor.is_open() ? platform::status(descriptor.number()) : std::nullopt;
  if (!opened) refuse(errno);
  if (opened->kind == FileStatus::Kind::folder) refuse(EISDIR);
  if (opened->kind == FileStatus::Kind::other) refuse(EINVAL);
  if (opened->bytes != bytes) {
    throw InputError(path(name).string() + " has " + std::to_string(opened->bytes) +
                     " bytes where bundle.json says " + std::to_string(bytes) +
                     ": copy or export the bundle again");
  }
  files_.emplace(name, File{std::move(descriptor), *opened});
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
  const auto bytes = static_cast<std::size_t>(file.opened.bytes);
  if (file.mapped.empty() && bytes > 0) {
    file.mapped = platform::map(file.descriptor.number(), bytes);
    if (file.mapped.empty()) fail_file("read", path(name), errno);
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
    const auto now = platform::status(file.descriptor.number());
    if (now && same_content(*now, file.opened)) continue;
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
    const auto now = platform::status(path(name));
    return now && same_file(*now, files_.at(name).opened) && folder_of(name) == folder && !error;
  });
}

}  // namespace intaglio
