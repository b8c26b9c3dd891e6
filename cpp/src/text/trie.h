// Byte strings to numbers, searched for those that a text starts with.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace intaglio {

class Trie {
 public:
  static constexpr std::uint32_t kNone = UINT32_MAX;  // no value; not to be given as one

  // Of a key that comes twice the later value holds; the empty key is never found.
  explicit Trie(std::vector<std::pair<std::string, std::uint32_t>> entries);

  // Calls found(length, value) for every key that `text` starts with, shortest first.
  template <typename Found>
  void prefixes(std::string_view text, const Found& found) const {
    std::uint32_t node = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      node = child(node, static_cast<unsigned char>(text[i]));
      if (node == 0) return;
      if (nodes_[node].value != kNone) found(i + 1, nodes_[node].value);
    }
  }

  // The value of `key`, kNone when it is not there.
  std::uint32_t at(std::string_view key) const;

 private:
  struct Node {
    std::uint32_t value = kNone;
    std::uint32_t first_child = 0;  // children lie side by side in the order of their labels
    std::uint16_t children = 0;
    unsigned char label = 0;
  };

  std::uint32_t child(std::uint32_t node, unsigned char label) const;  // 0: none

  std::vector<Node> nodes_;
};

}  // namespace intaglio
