#include "intaglio/role.h"

#include <array>
#include <charconv>
#include <utility>

namespace intaglio {

namespace {

constexpr std::array kNames = {std::pair{Role::latent, "latent"},
                               std::pair{Role::text, "text"},
                               std::pair{Role::text_mask, "text_mask"},
                               std::pair{Role::pooled, "pooled"},
                               std::pair{Role::timestep, "timestep"},
                               std::pair{Role::guidance, "guidance"},
                               std::pair{Role::position, "position"},
                               std::pair{Role::class_label, "class"},
                               std::pair{Role::modulation, "modulation"},
                               std::pair{Role::context, "context"},
                               std::pair{Role::references, "references"},
                               std::pair{Role::reference_position, "reference_position"},
                               std::pair{Role::mask, "mask"},
                               std::pair{Role::ref, "ref"},
                               std::pair{Role::branch, "branch"},
                               std::pair{Role::keep, "keep"},
                               std::pair{Role::source, "source"},
                               std::pair{Role::anchor, "anchor"},
                               std::pair{Role::prediction, "prediction"},
                               std::pair{Role::token_ids, "token_ids"},
                               std::pair{Role::hidden, "hidden"},
                               std::pair{Role::image, "image"}};
// The block's number follows.
constexpr std::array kBlockNames = {std::pair{Role::hidden_states, "hidden_states_"},
                                    std::pair{Role::gate, "gate_"}};

// A number as std::to_string writes it: no sign and no zero in front.
std::optional<int> block_from(std::string_view digits) {
  int block = 0;
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, block);
  if (error != std::errc() || stop != end || std::to_string(block) != digits || block < 0)
    return std::nullopt;
  return block;
}

}  // namespace

std::string to_string(const Role& role) {
  for (const auto& [kind, name] : kNames)
    if (kind == role.kind) return name;
  for (const auto& [kind, name] : kBlockNames)
    if (kind == role.kind) return name + std::to_string(role.block);
  return "";
}

std::optional<Role> role_from(std::string_view name) {
  for (const auto& [kind, known] : kNames)
    if (name == known) return kind;
  for (const auto& [kind, prefix] : kBlockNames) {
    if (!name.starts_with(prefix)) continue;
    if (const auto block = block_from(name.substr(std::string_view(prefix).size())))
      return Role(kind, *block);
  }
  return std::nullopt;
}

}  // namespace intaglio
