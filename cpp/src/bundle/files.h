// The files of a bundle, which stay open for as long as it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/descriptor.h"
#include "platform/file.h"

namespace intaglio {

// What is read here is what was opened, and so what was checked, also when the folder has been
// renamed, replaced or deleted since. Several threads may use the object at once.
class BundleFiles {
 public:
  explicit BundleFiles(std::filesystem::path folder) : folder_(std::move(folder)) {}
  BundleFiles(const BundleFiles&) = delete;  // unmaps the files once
  BundleFiles& operator=(const BundleFiles&) = delete;
  ~BundleFiles();

  // Opens a file of the folder. Throws InputError when that fails, or when the file does not have
  // `bytes` bytes.
  void open(const std::string& name, std::uint64_t bytes);

  std::filesystem::path path(const std::string& name) const { return folder_ / name; }
  std::string sha256(const std::string& name) const;
  std::string read(const std::string& name) const;
  // Returns the content of a file, which stays mapped for as long as this object.
  std::span<char> map(const std::string& name) const;
  // Returns the files with the weights of a graph: all in its folder that are no graphs.
  std::vector<std::string> weights(const std::string& graph) const;

  // Throws InputError when a file was overwritten since it was opened. The size and the time of the
  // last change tell.
  void check_unchanged() const;
  // Whether the paths of a graph and its weights still lead to the files that are open here, and to
  // one folder, as ONNX Runtime wants them.
  bool in_place(const std::string& graph) const;

 private:
  struct File {
    Descriptor descriptor;
    platform::FileStatus opened;
    mutable std::span<char> mapped = {};
  };

  std::filesystem::path folder_;
  mutable std::mutex mapping_;  // of the files' `mapped`
  std::map<std::string, File> files_;
};

}  // namespace intaglio
