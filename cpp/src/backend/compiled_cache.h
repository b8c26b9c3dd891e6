// Where providers that compile a graph keep the result: one folder of the user's, for all of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "core/descriptor.h"
#include "intaglio/compiled_cache.h"

namespace intaglio {

// An entry of the cache. While it exists, no process removes its folder.
struct CompiledEntry {
  std::filesystem::path folder = {};  // empty when no folder can be written: nothing is kept
  bool empty = true;                  // whether nothing was compiled yet
  Descriptor lock{-1};
};

// Opens the entry of a bundle for a provider and its version, and removes the entries that were
// not used for longest and that no process uses, until at most `limit` bytes are left.
CompiledEntry open_compiled(const std::string& provider, const std::filesystem::path& bundle,
                            std::uint64_t limit = kCompiledLimit);

}  // namespace intaglio
