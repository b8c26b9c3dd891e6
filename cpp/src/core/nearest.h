// Finds the name that somebody may have meant.
#pragma once

#include <string>
#include <vector>

namespace intaglio {

// Returns " (did you mean NAME?)" with the first of `names` that contains `word`, or else the one
// that differs from it in the fewest letters, and "" where there is neither. `before` is put before
// the name.
std::string did_you_mean(const std::string& word, const std::vector<std::string>& names,
                         const std::string& before = "");

}  // namespace intaglio
