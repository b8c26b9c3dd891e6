#include "pipeline/memory_estimate.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <variant>

#include "intaglio/options.h"
#include "pipeline/references.h"
#include "pipeline/skipped_layers.h"
#include "sampling/plan.h"

namespace intaglio {

namespace {

// Memory that ONNX Runtime's arena takes for a block, in tensors as wide as the hidden states
// (docs/decisions/0022): a feed-forward layer four times as wide before and after its activation,
// attention, and what the arena's blocks of doubling size leave unused.
constexpr double kBlockTensors = 20;
// The same for a VAE, whose widest tensors have the resolution of the picture, in multiples of its
// first width.
constexpr double kVaeTensors = 11;
// Parameters of AutoencoderKL's decoder divided by the square of its first width, where it doubles
// the resolution so many times. A level is as wide as 1, 2, 4, 4 times the first.
constexpr std::array<double, 4> kVaeParameters{105, 400, 2009, 3017};
constexpr double kHeadSize = 64;  // channels; larger heads need less
// The largest matrix of a block, in multiples of the hidden size squared.
constexpr double kTransformerMatrix = 9, kEncoderMatrix = 3;
// What ONNX Runtime's WebGPU takes for activations, in multiples of their size: it keeps buffers of
// some sizes only (counted by tests/integration/test_webgpu.py).
constexpr double kWebGpuBuffers = 1.6;
constexpr std::int64_t kConditioningRows = 64;  // at a time (pipeline/precompute.cpp)

double as_double(std::int64_t value) { return static_cast<double>(value); }

std::uint64_t whole(double bytes) { return static_cast<std::uint64_t>(std::ceil(bytes)); }

// Returns the size of a graph's weights: of all files in its folder that are no graphs.
double weight_bytes(const Bundle& bundle, const Graph& graph) {
  const std::string folder = graph.path.substr(0, graph.path.rfind('/') + 1);
  std::uint64_t bytes = 0;
  for (const auto& [name, size] : bundle.file_bytes)
    if (name.starts_with(folder) && !name.ends_with(".onnx")) bytes += size;
  return static_cast<double>(bytes);
}

double last_axis(const GraphTensor& tensor) {
  const auto* size = std::get_if<std::int64_t>(&tensor.axes.back());
  return size ? as_double(*size) : 0;
}

bool on_cpu(const MemoryLimit& limit) { return limit.device == "cpu"; }

// The size of one number: graphs for the CPU, for WebGPU and for OpenVINO compute in float32.
double item_bytes(const Bundle& bundle, const MemoryLimit& limit) {
  const bool cuda = limit.device.starts_with("cuda") || limit.device.starts_with("tensorrt");
  return cuda && bundle.dtype != "float32" ? 2 : 4;
}

// On the CPU, a 16-bit matrix is cast to float32 where it is used.
double cast_bytes(const Bundle& bundle, const MemoryLimit& limit, double matrix) {
  return on_cpu(limit) && bundle.dtype != "float32" ? matrix * 4 : 0;
}

// Attention that holds its scores and their softmax at once.
double score_bytes(double rows, double width, double tokens, double item) {
  return 2 * rows * std::ceil(width / kHeadSize) * tokens * tokens * item;
}

MemoryPhase encoder_phase(const Bundle& bundle, const std::string& name, const TextEncoder& encoder,
                          const MemoryLimit& limit) {
  double width = 0;
  for (const GraphTensor& output : encoder.graph.outputs)
    width = std::max(width, last_axis(output));
  const bool quantized = !encoder.quantized.empty();
  const double tokens = encoder.max_length, item = quantized ? 4 : item_bytes(bundle, limit);
  const double matrix = kEncoderMatrix * width * width;
  return {.part = name,
          .weights = whole(weight_bytes(bundle, encoder.graph)),
          .activations =
              whole(kBlockTensors * tokens * width * item + score_bytes(1, width, tokens, item) +
                    (quantized ? matrix * 4 : cast_bytes(bundle, limit, matrix))),
          .on_cpu = quantized && has_own_memory(limit.device)};
}

// The modulations of a part of the schedule, joined from those of the blocks, and those of a step.
double conditioning_bytes(const Bundle& bundle, const RunSize& size) {
  const Graph* graph = bundle.conditioning();
  if (!graph) return 0;
  const double width = last_axis(graph->output(Role::modulation));
  const auto rows = as_double(std::min(kConditioningRows, size.timesteps * size.base_rows) * 2 +
                              size.images * size.base_rows);
  return rows * width * 4;
}

MemoryPhase transformer_phase(const Bundle& bundle, const RunSize& size, const MemoryLimit& limit) {
  const double width = bundle.hidden_size, item = item_bytes(bundle, limit);
  const auto rows = as_double(size.images * size.rows);
  const auto image_tokens = as_double(bundle.token_count(size.height, size.width));
  const double tokens = image_tokens + as_double(size.text_tokens + size.reference_tokens);
  double activations = kBlockTensors * rows * tokens * width * item +
                       conditioning_bytes(bundle, size) +
                       cast_bytes(bundle, limit, kTransformerMatrix * width * width);
  // ONNX Runtime's CPU kernel computes attention without a mask in blocks.
  if (!on_cpu(limit) || bundle.transformer().takes(Role::text_mask))
    activations += score_bytes(rows, width, tokens, item);
  if (bundle.observed()) activations += bundle.blocks * rows * image_tokens * width * 4;
  double weights = weight_bytes(bundle, bundle.transformer());
  // Both graphs of layout dual have the weights; on the CPU they map one file.
  if (bundle.layout == Layout::dual && !on_cpu(limit)) weights *= 2;
  if (on_cpu(limit) && limit.prepack && bundle.dtype == "float32") activations += weights;
  return {.part = "transformer", .weights = whole(weights), .activations = whole(activations)};
}

MemoryPhase vae_phase(const Bundle& bundle, const std::string& part, const Graph& graph,
                      double pixels) {
  const double weights = weight_bytes(bundle, graph);
  const int doubled = std::bit_width(static_cast<unsigned>(bundle.latent.vae_scale_factor)) - 1;
  const double parameters = kVaeParameters[static_cast<std::size_t>(std::clamp(doubled, 0, 3))];
  const double width = std::sqrt(weights / sizeof(float) / parameters);
  return {.part = part,
          .weights = whole(weights),
          .activations = whole(kVaeTensors * width * pixels * 4)};
}

bool changes(const std::optional<Ramp>& scale, double off) {
  return scale && !scale->is_always(off);
}

void add_references(const Bundle& bundle, const GenerateOptions& options, RunSize& size) {
  if (!bundle.references) return;
  for (const Image& picture : options.references) {
    const auto [width, height] = reference_size(bundle, picture.width, picture.height);
    size.reference_tokens += bundle.token_count(height, width);
    size.largest_reference = std::max(size.largest_reference, static_cast<double>(width) * height);
  }
}

}  // namespace

RunSize run_size(const Bundle& bundle, const GenerateOptions& given) {
  const GenerateOptions options = with_defaults(bundle, given);
  RunSize size{.images = image_count(options),
               .pictures = image_count(options),
               .timesteps = *options.steps,
               .height = *options.height,
               .width = *options.width,
               .vae_tile = options.vae_tile,
               .encodes_image = options.image.has_value()};
  const auto problems = bundle.check_size(size.height, size.width);
  if (!problems.empty()) throw_problem(problems.front());
  add_references(bundle, options, size);
  if (options.image && options.mask_padding)
    size.whole_picture = static_cast<double>(options.image->width) * options.image->height;
  size.base_rows = changes(options.cfg_scale, 1) ? 2 : 1;
  if (skips_layers(options) || options.transport_from) ++size.base_rows;
  size.rows = size.base_rows + (changes(options.dg_scale, 0) ? 1 : 0);
  if (!bundle.prompt) return size;
  size.text_tokens = bundle.prompt->text_length();
  size.encodes_text = !options.prompt_embeds && !bundle.prompt->encoders.empty();
  if (options.prompt_embeds && options.prompt_embeds->positive.text.shape().size() > 1)
    size.text_tokens = options.prompt_embeds->positive.text.dim(1);
  return size;
}

bool has_independent_images(const Bundle& bundle, const GenerateOptions& given) {
  const GenerateOptions options = with_defaults(bundle, given);
  const bool skips = options.skip_interval || !options.skip_steps.empty();
  const SchedulerConfig scheduler =
      options.scheduler ? with_scheduler(bundle.scheduler, *options.scheduler) : bundle.scheduler;
  // The sampler's noise, and the picture around a mask, are those of all images of the run.
  return !skips && !options.mask && !adds_noise(scheduler) && bundle.has_independent_rows();
}

bool has_own_memory(const std::string& device) {
  return device != "cpu" && device != "openvino" && device != "openvino:cpu";
}

std::vector<MemoryPhase> estimate_phases(const Bundle& bundle, const RunSize& size,
                                         const MemoryLimit& limit) {
  std::vector<MemoryPhase> phases;
  if (size.encodes_text) {
    for (const auto& [name, encoder] : bundle.prompt->encoders)
      phases.push_back(encoder_phase(bundle, name, encoder, limit));
  }
  const auto pixels = [](double height, double width) { return height * width; };
  const double encoded =
      std::max(size.largest_reference, size.encodes_image ? pixels(size.height, size.width) : 0);
  if (encoded > 0 && bundle.vae_encoder)
    phases.push_back(vae_phase(bundle, "vae_encoder", *bundle.vae_encoder, encoded));
  phases.push_back(transformer_phase(bundle, size, limit));
  if (bundle.vae_decoder) {
    phases.push_back(vae_phase(
        bundle, "vae_decoder", *bundle.vae_decoder,
        pixels(std::min(size.height, size.vae_tile), std::min(size.width, size.vae_tile))));
    if (!has_own_memory(limit.device))
      phases.back().activations +=
          whole(as_double(size.pictures) * 3 *
                (size.whole_picture > 0 ? size.whole_picture : pixels(size.height, size.width)));
  }
  if (limit.device.starts_with("webgpu"))
    for (MemoryPhase& phase : phases)
      if (!phase.on_cpu)
        phase.activations = whole(static_cast<double>(phase.activations) * kWebGpuBuffers);
  return phases;
}

}  // namespace intaglio
