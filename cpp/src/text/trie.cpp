#include "text/trie.h"

#include <algorithm>

namespace intaglio {

Trie::Trie(std::vector<std::pair<std::string, std::uint32_t>> entries) {
  std::ranges::stable_sort(entries, {}, &std::pair<std::string, std::uint32_t>::first);
  struct Range {
    std::size_t begin, end,
        depth;  // the entries below a node; they share their first `depth` bytes
  };
  // Nodes are added level by level, so that the children of a node are adjacent.
  std::vector<Range> ranges = {{0, entries.size(), 0}};
  nodes_.emplace_back();
  for (std::size_t node = 0; node < nodes_.size(); ++node) {
    auto [begin, end, depth] = ranges[node];
    for (; begin < end && entries[begin].first.size() == depth; ++begin) {
      nodes_[node].value = entries[begin].second;
    }
    nodes_[node].first_child = static_cast<std::uint32_t>(nodes_.size());
    while (begin < end) {
      const char label = entries[begin].first[depth];
      std::size_t next = begin;
      while (next < end && entries[next].first[depth] == label) ++next;
      nodes_.push_back({.label = static_cast<unsigned char>(label)});
      ranges.push_back({begin, next, depth + 1});
      ++nodes_[node].children;
      begin = next;
    }
  }
}

std::uint32_t Trie::child(std::uint32_t node, unsigned char label) const {
  const auto first = nodes_.begin() + nodes_[node].first_child;
  const auto last = first + nodes_[node].children;
  const auto found = std::ranges::lower_bound(first, last, label, {}, &Node::label);
  if (found == last || found->label != label) return 0;
  return static_cast<std::uint32_t>(found - nodes_.begin());
}

std::uint32_t Trie::find(std::string_view key) const {
  std::uint32_t value = kNone;
  for_each_prefix(key, [&](std::size_t length, std::uint32_t found) {
    if (length == key.size()) value = found;
  });
  return value;
}

}  // namespace intaglio
