// How much memory the parts of a bundle take while they run, estimated from the manifest.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "intaglio/memory_plan.h"

namespace intaglio {

// The sizes of a run that decide about its memory.
struct RunSize {
  std::int64_t images = 1;       // that share the transformer
  std::int64_t pictures = 1;     // that are kept until the last one is decoded
  std::int64_t base_rows = 1;    // of each image: 2 with CFG
  std::int64_t rows = 1;         // and one more with DG
  std::int64_t timesteps = 1;    // whose modulations are computed ahead
  std::int64_t text_tokens = 0;  // in the transformer
  std::int64_t reference_tokens = 0;
  int height = 0, width = 0;  // pixels
  int vae_tile = 0;           // pixels
  // Of the picture that each drawing is put back into, in pixels; 0 where the drawing is all of it.
  double whole_picture = 0;
  bool encodes_text = false;
  bool encodes_image = false;
  double largest_reference = 0;  // pixels
};

// Throws UsageError for an image size that the bundle does not draw.
RunSize run_size(const Bundle& bundle, const GenerateOptions& options);

// Whether images can be drawn in groups as they are drawn together. They cannot where one of them
// decides for all whether a step is skipped, nor where the sampler's noise or the picture around a
// mask is made for the whole run.
bool has_independent_images(const Bundle& bundle, const GenerateOptions& options);

// Whether the device has memory of its own.
bool has_own_memory(const std::string& device);

// Returns what each part takes, in the order of the run.
std::vector<MemoryPhase> estimate_phases(const Bundle& bundle, const RunSize& size,
                                         const MemoryLimit& limit);

}  // namespace intaglio
