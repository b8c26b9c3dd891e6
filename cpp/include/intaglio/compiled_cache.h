// What devices have compiled, which is kept in one folder of the user's for the next time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace intaglio {

// What one version of a provider has compiled for one bundle.
struct CompiledSize {
  std::string name;         // "tensorrt-rtx-0.5.0-0123456789abcdef"
  std::uint64_t bytes = 0;  // on the disk
  bool in_use = false;      // whether a process holds it, so that clear_compiled() leaves it
};

// When more than this is kept, what was not used for longest is removed.
inline constexpr std::uint64_t kCompiledLimit = 20'000'000'000;

// Returns $XDG_CACHE_HOME/intaglio/compiled, where XDG_CACHE_HOME is ~/.cache if it is not set, or
// an empty path when there is no home.
std::filesystem::path compiled_cache();

// Lists all entries, the last used first.
std::vector<CompiledSize> list_compiled();

// Removes all entries that no process uses, and returns them. Throws InputError when one cannot be
// removed.
std::vector<CompiledSize> clear_compiled();

}  // namespace intaglio
