// Reads the text of bundle.json into a Bundle, without opening any other file.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "intaglio/bundle.h"

namespace intaglio {

struct ListedFile {
  std::uint64_t bytes = 0;
  std::string sha256;
};

struct Manifest {
  Bundle bundle;
  std::map<std::string, ListedFile> files;
};

inline constexpr int supported_schema = 3;

// `name` is the name of the file, for messages. Throws InputError for text that is not JSON, for a
// newer schema, for a missing or wrongly typed field (by its path), for a path that leaves the
// folder, and for contradictions.
Manifest parse_manifest(std::string_view text, const std::string& name);

}  // namespace intaglio
