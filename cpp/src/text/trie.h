// A map from byte strings to numbers that finds every key that a text starts with.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace intaglio {

class Trie {
 public:
  static constexpr std::uint32_t kNone = UINT32_MAX;  // means no value, so no entry may have it

  // When a key comes twice, the later value counts. The empty key is never found.
  explicit Trie(std::vector<std::pair<std::string, std::uint32_t>> entries);

  // Calls on_key(length, value) for every key that `text` starts with, shortest first.
  template <typename OnKey>
  void for_each_prefix(std::string_view text, const OnKey& on_key) const {
    std::uint32_t node = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      node = child(node, static_cast<unsigned char>(text[i]));
      if (node == 0) return;
      if (nodes_[node].value != kNone) on_key(i + 1, nodes_[node].value);
    }
  }

  // Returns the value of `key`, or kNone when the map does not have it.
  std::uint32_t find(std::string_view key) const;

 private:
  struct Node {
    std::uint32_t value = kNone;
    std::uint32_t first_child = 0;  // children are adjacent and sorted by label
    std::uint16_t children = 0;
    unsigned char label = 0;
  };

  // Returns the index of a node's child, or 0 when it has none of that label.
  std::uint32_t child(std::uint32_t node, unsigned char label) const;

  std::vector<Node> nodes_;
};

}  // namespace intaglio
