#include "intaglio/memory_plan.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <map>
#include <optional>
#include <ranges>
#include <set>
#include <utility>

#include "backend/device_memory_size.h"
#include "core/usable_memory.h"
#include "intaglio/error.h"
#include "pipeline/memory_estimate.h"
#include "platform/process.h"

namespace intaglio {

namespace {

// Tiles are not made smaller than this, in pixels: the VAE's norms see one tile at a time, and its
// seams begin to show.
constexpr int kSmallestTile = 256;
// What ONNX Runtime takes when it opens and runs its first graphs, however small they are.
constexpr std::uint64_t kRuntime = 30'000'000;

MemoryPlan plan_phases(const Bundle& bundle, const RunSize& size, const MemoryLimit& limit) {
  return {.device = limit.device,
          .limit = limit.bytes,
          .program = limit.program,
          .phases = estimate_phases(bundle, size, limit),
          .vae_tile = size.vae_tile,
          .images_at_once = size.images};
}

bool is_encoder(const Bundle& bundle, const MemoryPhase& phase) {
  return bundle.prompt && bundle.prompt->encoders.contains(phase.part);
}

// Whether the device keeps the buffers of a part's activations when the part is let go. WebGPU
// does, for later sessions, which seldom need the same sizes.
bool keeps_buffers(const std::string& device) { return device.starts_with("webgpu"); }

// Plans parts that run in turn, with tiles of the VAE that are as large as the limit allows.
// `on_cpu` has encoders that run there although each would fit alone.
MemoryPlan plan_tiles(const Bundle& bundle, RunSize size, const MemoryLimit& limit,
                      const std::set<std::string>& on_cpu) {
  MemoryPlan plan;
  const int unit = 4 * bundle.latent.vae_scale_factor;  // as --vae-tile must be
  const int smallest = std::max(kSmallestTile / unit * unit, unit);
  size.vae_tile =
      std::min(size.vae_tile, (std::max(size.height, size.width) + unit - 1) / unit * unit);
  while (true) {
    plan = plan_phases(bundle, size, limit);
    plan.in_turn = true;
    for (MemoryPhase& phase : plan.phases) {
      const bool too_large = has_own_memory(limit.device) && phase.bytes() > limit.bytes;
      if (is_encoder(bundle, phase) && (too_large || on_cpu.contains(phase.part)))
        phase.on_cpu = true;
    }
    const auto& decoder = plan.phases.back();
    const bool decodes = plan.program + decoder.bytes() <= plan.limit;
    if (plan.fits() || (decodes && !keeps_buffers(limit.device))) return plan;
    if (decoder.part != "vae_decoder" || size.vae_tile - unit < smallest) return plan;
    size.vae_tile -= unit;
  }
}

// Plans parts that run in turn. `size` has the images that one request runs together.
MemoryPlan plan_in_turn(const Bundle& bundle, const RunSize& size, const MemoryLimit& limit) {
  std::set<std::string> on_cpu;
  while (true) {
    MemoryPlan plan = plan_tiles(bundle, size, limit, on_cpu);
    if (plan.fits() || !keeps_buffers(limit.device)) return plan;
    const MemoryPhase* largest = nullptr;
    for (const MemoryPhase& phase : plan.phases) {
      if (!is_encoder(bundle, phase) || phase.on_cpu) continue;
      if (!largest || phase.bytes() > largest->bytes()) largest = &phase;
    }
    if (!largest) return plan;
    on_cpu.insert(largest->part);
  }
}

MemoryPlan find_plan(const Bundle& bundle, const RunSize& size, std::int64_t together,
                     const MemoryLimit& limit) {
  RunSize shared = size;
  shared.images = std::max(together, size.images);
  MemoryPlan plan = plan_phases(bundle, shared, limit);
  return plan.fits() ? plan : plan_in_turn(bundle, size, limit);
}

// Returns how many images fit, where not all of the run do: as a run of their own or as one of its
// groups. 0 where not even one does.
std::int64_t fitting_images(const Bundle& bundle, RunSize size, const MemoryLimit& limit,
                            bool as_group) {
  const auto fits = [&](std::int64_t images) {
    size.images = images;
    if (!as_group) size.pictures = images;
    return find_plan(bundle, size, 0, limit).fits();
  };
  const auto numbers = std::views::iota(std::int64_t{1}, size.images);
  return static_cast<std::int64_t>(std::ranges::partition_point(numbers, fits) - numbers.begin());
}

// Plans groups of the run's images of which none is much smaller than the others; where not even
// one image fits, the plan does not.
MemoryPlan plan_in_groups(const Bundle& bundle, RunSize size, const MemoryLimit& limit) {
  const std::int64_t images = size.images;
  const std::int64_t most = fitting_images(bundle, size, limit, true);
  const std::int64_t groups = (images + most - 1) / std::max<std::int64_t>(most, 1);
  size.images = most == 0 ? 1 : (images + groups - 1) / groups;
  return find_plan(bundle, size, 0, limit);
}

std::optional<std::string> smaller_batch(const Bundle& bundle, RunSize size,
                                         const MemoryLimit& limit) {
  const std::int64_t most = fitting_images(bundle, size, limit, false);
  if (most == 0) return {};
  return "--batch " + std::to_string(most) + " fits";
}

std::optional<std::string> smaller_size(const Bundle& bundle, RunSize size,
                                        const MemoryLimit& limit) {
  if (bundle.latent.fixed_size) return {};
  constexpr int parts = 16;
  const int unit = bundle.size_multiple(), height = size.height, width = size.width;
  size.images = size.pictures = 1;
  for (int part = parts - 1; part > 0; --part) {
    size.height = std::max(height * part / parts / unit * unit, unit);
    size.width = std::max(width * part / parts / unit * unit, unit);
    if (find_plan(bundle, size, 0, limit).fits())
      return "--width " + std::to_string(size.width) + " --height " + std::to_string(size.height) +
             " fits" +
             (size.encodes_image && size.whole_picture == 0 ? ", with --image in that size" : "");
  }
  return {};
}

std::optional<std::string> smaller_type(const Bundle& bundle, RunSize size,
                                        const MemoryLimit& limit) {
  if (bundle.dtype != "float32" || !bundle.quantized.empty()) return {};
  Bundle halved = bundle;
  halved.dtype = "float16";
  const auto is_quantized = [&](const std::string& file) {
    if (!bundle.prompt) return false;
    return std::ranges::any_of(bundle.prompt->encoders, [&](const auto& encoder) {
      return !encoder.second.quantized.empty() && file.starts_with(encoder.first + "/");
    });
  };
  for (auto& [name, bytes] : halved.file_bytes)
    if (!name.starts_with("vae_") && !is_quantized(name)) bytes /= 2;
  size.images = size.pictures = 1;
  if (!find_plan(halved, size, 0, limit).fits()) return {};
  return "export the model with --dtype float16 or bfloat16, and one image fits";
}

[[noreturn]] void refuse(const Bundle& bundle, const RunSize& size, const MemoryPlan& plan,
                         const MemoryLimit& limit) {
  std::string message = std::to_string(size.width) + "x" + std::to_string(size.height) + " pixels";
  if (size.images > 1) message += " in a batch of " + std::to_string(size.images);
  message += " take " + byte_text(plan.peak()) + " on " + plan.device +
             ", and --max-memory allows " + byte_text(limit.bytes) + ": ";
  for (const auto& find : {smaller_batch, smaller_size, smaller_type})
    if (const auto found = find(bundle, size, limit)) throw OutOfMemoryError(message + *found);
  const auto bytes = [](const MemoryPhase& phase) { return phase.on_cpu ? 0 : phase.bytes(); };
  const auto& largest = *std::ranges::max_element(plan.phases, {}, bytes);
  // Where buffers are kept, parts that fit alone may still not fit in turn.
  const std::string why =
      plan.program + largest.bytes() > limit.bytes
          ? largest.part + " alone takes " + byte_text(largest.bytes())
          : "buffers of all parts stay on " + plan.device + " beside " + largest.part;
  throw OutOfMemoryError(message + "nothing smaller fits, because " + why + "; allow " +
                         byte_text(plan.peak()) + " or more");
}

std::uint64_t parse_size(const std::string& text) {
  static const std::map<std::string, double> units{
      {"", 1}, {"MB", 1e6}, {"GB", 1e9}, {"MiB", 0x1p20}, {"GiB", 0x1p30}};
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  const auto unit = units.find(std::string(stop, end));
  const double bytes = unit == units.end() ? 0 : number * unit->second;
  if (error != std::errc() || !(bytes >= 1 && bytes < 0x1p62)) {
    throw UsageError("--max-memory \"" + text +
                     "\" is not a size: give one such as 8GB, 7.5GiB or 900MB, or auto");
  }
  return static_cast<std::uint64_t>(bytes);
}

}  // namespace

std::uint64_t MemoryPlan::peak() const {
  std::uint64_t weights = 0, activations = 0, largest = 0, largest_weights = 0;
  for (const MemoryPhase& phase : phases) {
    if (phase.on_cpu) continue;
    weights += phase.weights;
    activations += phase.activations;
    largest = std::max(largest, phase.bytes());
    largest_weights = std::max(largest_weights, phase.weights);
  }
  if (!in_turn) return program + weights + activations;
  if (keeps_buffers(device)) return program + largest_weights + activations;
  return program + largest;
}

MemoryPlan plan_memory(const Bundle& bundle, const GenerateOptions& options,
                       const MemoryLimit& limit, std::int64_t together) {
  const RunSize size = run_size(bundle, options);
  MemoryPlan plan = find_plan(bundle, size, together, limit);
  const bool alone = together == 0 && has_independent_images(bundle, options);
  if (!plan.fits() && alone && size.images > 1) {
    MemoryPlan groups = plan_in_groups(bundle, size, limit);
    if (groups.fits()) return groups;
  }
  if (!plan.fits()) refuse(bundle, size, plan, limit);
  return plan;
}

MemoryLimit memory_limit(const std::string& max_memory, const std::string& device, bool prepack) {
  MemoryLimit limit{.device = device, .prepack = prepack};
  // Once, so that parts which are loaded later do not count twice.
  static const std::uint64_t program = platform::resident_memory_bytes() + kRuntime;
  if (!has_own_memory(device)) limit.program = program;
  if (max_memory == "auto") {
    const std::uint64_t free =
        has_own_memory(device) ? device_memory_bytes(device) : usable_memory();
    if (free == 0) {
      throw UnavailableError("the memory of device " + device +
                             " is not known: give --max-memory a size, such as 8GB");
    }
    limit.bytes = limit.program + free;
  } else if (!max_memory.empty()) {
    limit.bytes = parse_size(max_memory);
  }
  return limit;
}

std::string byte_text(std::uint64_t bytes) {
  char text[32];
  const auto number = static_cast<double>(bytes);
  if (number < 1e9) {
    std::snprintf(text, sizeof text, "%.0f MB", std::ceil(number / 1e6));
  } else {
    std::snprintf(text, sizeof text, "%.2f GB", std::ceil(number / 1e7) / 100);
  }
  return text;
}

}  // namespace intaglio
