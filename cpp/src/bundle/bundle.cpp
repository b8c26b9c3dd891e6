#include "intaglio/bundle.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "bundle/files.h"
#include "bundle/manifest.h"
#include "bundle/opening.h"
#include "intaglio/error.h"
#include "intaglio/file.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

const GraphTensor& find(const std::vector<GraphTensor>& tensors, const Role& role,
                        const std::string& graph) {
  const auto it =
      std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.role == role; });
  if (it == tensors.end())
    throw InputError(graph + " has no tensor of role " + to_string(role) +
                     ": export the bundle again");
  return *it;
}

// A file of this size is hashed in a tenth of a second. Graphs, which a parser reads, are smaller.
constexpr std::uint64_t kLarge = 128U << 20U;

void check_content(const BundleFiles& files, const std::string& name, const std::string& sha256) {
  if (files.sha256(name) != sha256) {
    throw InputError(files.path(name).string() +
                     " is not the file that was exported (its SHA-256 differs from bundle.json): "
                     "copy or export the bundle again");
  }
}

// Throws the error for a folder in which a bundle should be.
[[noreturn]] void refuse_without_manifest(const fs::path& folder) {
  const std::string name = folder.string();
  std::error_code error;
  if (!fs::exists(folder, error)) {
    const bool may_be_hub_name =
        folder.is_relative() && std::distance(folder.begin(), folder.end()) == 2;
    throw InputError("there is no folder " + name +
                     ": correct the path, or make a bundle with `intaglio export`" +
                     (may_be_hub_name ? ", or if it is one on the Hub, run `intaglio pull " + name +
                                            " -o " + name + "`"
                                      : ""));
  }
  if (fs::exists(folder / "bundle" / "bundle.json", error)) {
    throw InputError(name + " is a folder of `intaglio deploy`: its bundle is " +
                     (folder / "bundle").string() + ", which runs on any kind of machine");
  }
  throw InputError(name +
                   " is not a bundle (it has no bundle.json): make one with `intaglio export`");
}

}  // namespace

const char* name_of(Layout layout) { return layout == Layout::forked ? "forked" : "dual"; }

const GraphTensor& Graph::input(const Role& role) const { return find(inputs, role, path); }
const GraphTensor& Graph::output(const Role& role) const { return find(outputs, role, path); }
bool Graph::takes(const Role& role) const {
  return std::ranges::find(inputs, role, &GraphTensor::role) != inputs.end();
}

int Prompt::text_length() const {
  int length = 0;
  for (const TextSegment& segment : text) length += segment.length;
  return length;
}

const Graph& Bundle::transformer() const {
  return transformer_graphs.at(layout == Layout::forked ? "forked" : "base");
}

bool Bundle::has_independent_rows() const {
  return quantized != "int8-dynamic" || transformer().takes(Role::anchor);
}

const Graph* Bundle::conditioning() const {
  const auto found = transformer_graphs.find("conditioning");
  return found == transformer_graphs.end() ? nullptr : &found->second;
}

const GraphTensor* Bundle::input(const Role& role) const {
  const Graph* ahead = conditioning();
  if (ahead && ahead->takes(role)) return &ahead->input(role);
  return transformer().takes(role) ? &transformer().input(role) : nullptr;
}

std::vector<Problem> Bundle::check_size(int height, int width) const {
  const int largest_height = latent.max_height, largest_width = latent.max_width;
  if (latent.fixed_size && (height != largest_height || width != largest_width)) {
    return {{height != largest_height ? "height" : "width",
             name + " draws " + std::to_string(largest_width) + "x" +
                 std::to_string(largest_height) + " pixels only, not " + std::to_string(width) +
                 "x" + std::to_string(height) + ": leave --height and --width out"}};
  }
  std::vector<Problem> problems;
  const int unit = size_multiple();
  const auto check = [&](const std::string& side, int size, int largest) {
    if (size >= unit && size % unit == 0 && size <= largest) return;
    problems.push_back({side, "--" + side + " " + std::to_string(size) + " does not fit " + name +
                                  ": give a multiple of " + std::to_string(unit) + " from " +
                                  std::to_string(unit) + " to " + std::to_string(largest)});
  };
  check("height", height, largest_height);
  check("width", width, largest_width);
  return problems;
}

bool Bundle::observed() const { return transformer().outputs.size() > 1; }

Bundle Bundle::open(const fs::path& folder) {
  OpenedBundle opened = open_bundle(folder);
  opened.check_large_files();
  return std::move(opened.bundle);
}

OpenedBundle open_bundle(const fs::path& folder) {
  const fs::path path = folder / "bundle.json";
  std::error_code error;
  if (!fs::exists(path, error) && !error) {
    refuse_without_manifest(folder);
  }
  Manifest manifest = parse_manifest(read_file(path), path.string());
  auto files = std::make_shared<BundleFiles>(folder);
  std::vector<std::pair<std::string, std::string>> large;
  for (const auto& [name, listed] : manifest.files) {
    files->open(name, listed.bytes);
    if (listed.bytes >= kLarge)
      large.emplace_back(name, listed.sha256);
    else
      check_content(*files, name, listed.sha256);
    manifest.bundle.file_bytes[name] = listed.bytes;
    manifest.bundle.file_sha256[name] = listed.sha256;
  }
  manifest.bundle.folder = folder;
  manifest.bundle.files = files;
  return {std::move(manifest.bundle), [files, large = std::move(large)] {
            for (const auto& [name, sha256] : large) check_content(*files, name, sha256);
          }};
}

}  // namespace intaglio
