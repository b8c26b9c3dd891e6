#include "intaglio/bundle.h"

#include <algorithm>
#include <system_error>

#include "bundle/manifest.h"
#include "core/sha256.h"
#include "intaglio/error.h"
#include "intaglio/file.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

const GraphTensor& find(const std::vector<GraphTensor>& tensors, const std::string& role,
                        const std::string& graph) {
  const auto it =
      std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.role == role; });
  if (it == tensors.end())
    throw InputError(graph + " has no tensor of role " + role + ": export the bundle again");
  return *it;
}

void check_file(const fs::path& path, const ListedFile& listed) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  if (error)
    throw InputError("cannot read " + path.string() + ": " + error.message() +
                     "; the bundle is incomplete, copy or export it again");
  if (bytes != listed.bytes) {
    throw InputError(path.string() + " has " + std::to_string(bytes) +
                     " bytes where bundle.json says " + std::to_string(listed.bytes) +
                     ": copy or export the bundle again");
  }
  if (sha256_of_file(path) != listed.sha256) {
    throw InputError(path.string() +
                     " is not the file that was exported (its SHA-256 differs from bundle.json): "
                     "copy or export the bundle again");
  }
}

}  // namespace

const GraphTensor& Graph::input(const std::string& role) const { return find(inputs, role, path); }
const GraphTensor& Graph::output(const std::string& role) const {
  return find(outputs, role, path);
}
bool Graph::takes(const std::string& role) const {
  return std::ranges::find(inputs, role, &GraphTensor::role) != inputs.end();
}

int Prompt::text_length() const {
  int length = 0;
  for (const TextSegment& segment : text) length += segment.length;
  return length;
}

const Graph& Bundle::transformer() const {
  return transformer_graphs.at(layout == "forked" ? "forked" : "base");
}

const Graph* Bundle::conditioning() const {
  const auto found = transformer_graphs.find("conditioning");
  return found == transformer_graphs.end() ? nullptr : &found->second;
}

const GraphTensor* Bundle::input(const std::string& role) const {
  const Graph* ahead = conditioning();
  if (ahead && ahead->takes(role)) return &ahead->input(role);
  return transformer().takes(role) ? &transformer().input(role) : nullptr;
}

bool Bundle::observed() const { return transformer().outputs.size() > 1; }

Bundle Bundle::open(const fs::path& folder) {
  const fs::path path = folder / "bundle.json";
  std::error_code error;
  if (!fs::exists(path, error) && !error) {
    throw InputError(folder.string() +
                     " is not a bundle (it has no bundle.json): make one with `intaglio export`");
  }
  Manifest manifest = parse_manifest(read_file(path), path.string());
  for (const auto& [name, listed] : manifest.files) {
    check_file(folder / name, listed);
    manifest.bundle.file_bytes[name] = listed.bytes;
    manifest.bundle.file_sha256[name] = listed.sha256;
  }
  manifest.bundle.folder = folder;
  return std::move(manifest.bundle);
}

}  // namespace intaglio
