// The loop's arithmetic as graphs that a provider runs: GatherRows and DeviceStep of
// backend/device_memory.h.
#pragma once

#include <compare>
#include <cstddef>

#include "backend/graph_builder.h"
#include "intaglio/cfg_rule.h"

namespace intaglio {

// What decides the form of the graph for GatherRows. Its inputs are x0, table0, position0,
// modulation0, mask0 and so on, images, times, keeps and ones; its outputs latent, time and keep.
struct GatherForm {
  std::size_t members = 1;
  std::size_t rank = 4;     // of the latents
  bool modulation = false;  // or else timesteps
  bool keep = false;
  auto operator<=>(const GatherForm&) const = default;
};
void build_gather(GraphBuilder& graph, const GatherForm& form);

// The same for DeviceStep. Inputs and outputs have the names of its members; those of `to` end in
// "_to".
struct StepForm {
  std::size_t rank = 4;
  bool unconditional_cache = false, degraded_cache = false, guided_cache = false;
  bool scales_tokens = false;
  bool term_mask = false;
  bool corrects = false, noise = false;  // of the sampler: UnipcUpdate, NoisyUpdate
  CfgRule::Kind rule = CfgRule::Kind::cfg;
  bool momentum = false;
  bool rescales = false, normalizes = false;
  bool tag = false, previous = false;  // of Correction
  bool kept = false;                   // whether there is a mask
  bool needs_sums() const { return rule != CfgRule::Kind::cfg || rescales || normalizes; }
  auto operator<=>(const StepForm&) const = default;
};
void build_step(GraphBuilder& graph, const StepForm& form);

}  // namespace intaglio
