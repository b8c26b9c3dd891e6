// The role of a graph's tensor: what the tensor is for. The manifest lists each tensor with its
// name and its role, and the runtime binds tensors by role.
#pragma once

#include <compare>
#include <optional>
#include <string>
#include <string_view>

namespace intaglio {

struct Role {
  enum Kind {
    latent,
    text,
    text_mask,
    pooled,
    timestep,
    guidance,
    position,
    class_label,  // "class" in the manifest
    modulation,
    context,
    references,
    reference_position,
    // Inputs of the ops (cpp/ops/SPEC.md).
    mask,
    ref,
    branch,
    keep,
    source,
    anchor,
    // Outputs, and inputs of text encoders and the VAE.
    prediction,
    token_ids,
    hidden,
    image,
    // Outputs of each block of an observed transformer.
    hidden_states,
    gate,
  };
  Kind kind = latent;
  int block = -1;  // of hidden_states and gate; else -1

  Role() = default;
  Role(Kind of_kind, int of_block = -1)
      : kind(of_kind), block(of_block) {}  // NOLINT: a kind is a role
  auto operator<=>(const Role&) const = default;
};

// Returns the role's name in the manifest: "latent", "class", "hidden_states_3".
std::string to_string(const Role& role);
// Returns nullopt if the name is not that of a role.
std::optional<Role> role_from(std::string_view name);

}  // namespace intaglio
