#include "core/nearest.h"

#include <algorithm>
#include <cstddef>

namespace intaglio {

namespace {

constexpr std::size_t kShortest = 3, kLongest = 64;  // letters of a word that is compared

// Returns how many letters have to be inserted, deleted, replaced or swapped with their neighbour.
std::size_t distance(const std::string& from, const std::string& to) {
  std::vector<std::vector<std::size_t>> edits(from.size() + 1,
                                              std::vector<std::size_t>(to.size() + 1));
  for (std::size_t i = 0; i <= from.size(); ++i) {
    for (std::size_t j = 0; j <= to.size(); ++j) {
      if (i == 0 || j == 0) {
        edits[i][j] = i + j;
        continue;
      }
      const std::size_t changed = from[i - 1] == to[j - 1] ? 0 : 1;
      edits[i][j] =
          std::min({edits[i - 1][j] + 1, edits[i][j - 1] + 1, edits[i - 1][j - 1] + changed});
      if (i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1])
        edits[i][j] = std::min(edits[i][j], edits[i - 2][j - 2] + 1);
    }
  }
  return edits.back().back();
}

}  // namespace

std::string did_you_mean(const std::string& word, const std::vector<std::string>& names,
                         const std::string& before) {
  if (word.size() < kShortest || word.size() > kLongest) return "";
  auto found = std::ranges::find_if(
      names, [&](const std::string& name) { return name.find(word) != std::string::npos; });
  if (found == names.end()) {
    const auto edits = [&](const std::string& name) { return distance(word, name); };
    found = std::ranges::min_element(names, {}, edits);
    if (found != names.end() && edits(*found) > word.size() / 3) found = names.end();
  }
  return found == names.end() ? "" : " (did you mean " + before + *found + "?)";
}

}  // namespace intaglio
