// Guidance in which D_m is D_c without some blocks: skip-layer guidance, as Stability AI's for
// SD3.5 and as diffusers' SkipLayerGuidance, and S2-Guidance (arXiv 2508.12880), which skips others
// in each step. A block whose gates are zero adds nothing to its streams.
#pragma once

#include <cstdint>
#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/error.h"
#include "intaglio/generate_options.h"
#include "intaglio/guidance.h"

namespace intaglio {

// Columns [first, last) of the modulations.
struct Columns {
  std::int64_t first = 0, last = 0;
};

// Returns where the modulations have the gates of these blocks, or nothing where that is not known:
// for families other than SD3 and FLUX.1, and for bundles without the graph `conditioning`.
std::vector<Columns> gate_columns(const Bundle& bundle, const std::vector<int>& layers);

bool skips_layers(const GenerateOptions& options);

// Returns the blocks that S2-Guidance skips in a step: those of the smallest of as many numbers of
// std::mt19937, whose seed is the step. Images of a batch then have what they have alone.
std::vector<int> drawn_layers(double share, int blocks, std::uint32_t step);

// Adds a problem for each option of Detail Guidance that the user gave beside skipped layers.
void refuse_options_of_dg(const GenerateOptions& given, std::vector<Problem>& problems);

// Puts the skipped layers' scale and window in the place of Detail Guidance's. `given` are the
// options with the bundle's defaults. Adds a problem for what does not fit.
void set_skipped_layers(const Bundle& bundle, const GenerateOptions& options, Guidance& guidance,
                        std::vector<Problem>& problems);

}  // namespace intaglio
