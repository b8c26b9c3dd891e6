// What a run keeps in memory, as far as that is known before anything is loaded
// (docs/decisions/0022).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/generate_options.h"

namespace intaglio {

// One part of the bundle and what it takes while it runs, in bytes.
struct MemoryPhase {
  std::string part;               // an encoder's name, transformer, vae_encoder or vae_decoder
  std::uint64_t weights = 0;      // on the CPU they are mapped from the bundle's files
  std::uint64_t activations = 0;  // an estimate of all else that is needed at once
  bool on_cpu = false;            // it runs there although the device is another
  std::uint64_t bytes() const { return weights + activations; }
};

struct MemoryPlan {
  std::string device;
  std::uint64_t limit = 0;          // bytes that the run may take on the device; 0: any number
  std::uint64_t program = 0;        // bytes of the process itself, where the device is the CPU
  std::vector<MemoryPhase> phases;  // in the order of the run
  // Whether each part is let go when it has run, before the next one is loaded. Otherwise all parts
  // stay loaded.
  bool in_turn = false;
  int vae_tile = 0;  // pixels
  // How many images of the run share the transformer. Where these are not all, the run is denoised
  // in groups, one after another.
  std::int64_t images_at_once = 0;
  // Returns the most bytes that the device has to hold at once.
  std::uint64_t peak() const;
  bool fits() const { return limit == 0 || peak() <= limit; }
};

// What decides about the memory of a run beside its options.
struct MemoryLimit {
  std::string device = "cpu";  // never auto
  std::uint64_t bytes = 0;     // 0: no limit
  std::uint64_t program = 0;   // MemoryPlan::program
  bool prepack = false;        // as BackendOptions has it
};

// Returns what BackendOptions::max_memory stands for on a device that works: "8GB", "500MiB",
// "8000000000", or "auto" for the memory that is free. An empty text is no limit. The first call of
// a process takes the memory that it has then for its program. Throws UsageError
// for other texts, and UnavailableError for
// auto where the memory of the device is not known.
MemoryLimit memory_limit(const std::string& max_memory, const std::string& device,
                         bool prepack = false);

// Plans a run that has the transformer for itself, or, if `together` is not 0, shares it with
// others that are so many images at most. If the parts do not fit together they run in turn, if the
// VAE does not fit its tiles become smaller, and if an encoder does not fit on a device with memory
// of its own it runs on the CPU. If the images of a run that has the transformer for itself do not
// fit at once, they run in groups. Throws UsageError for a size that the bundle does not draw, and
// OutOfMemoryError, which names the nearest batch, size or type that fits, where nothing helps.
MemoryPlan plan_memory(const Bundle& bundle, const GenerateOptions& options,
                       const MemoryLimit& limit, std::int64_t together = 0);

// Returns a size for people: "9.52 GB", "31 MB".
std::string byte_text(std::uint64_t bytes);

}  // namespace intaglio
