// The folder that export writes and the runtime reads. Its schema is models/bundle.schema.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "intaglio/error.h"
#include "intaglio/guidance.h"
#include "intaglio/role.h"
#include "intaglio/sampling.h"
#include "intaglio/tensor.h"

namespace intaglio {

class BundleFiles;  // internal

// forked: one graph, whose rows of D_m continue those of D_c after block m. dual: a graph `base`
// for D_0 and D_c, and a graph `degraded` for D_m.
enum class Layout { forked, dual };
const char* name_of(Layout layout);

struct GraphTensor {
  std::string name;
  Role role;
  DType dtype = DType::float32;
  std::vector<std::variant<std::int64_t, std::string>> axes;  // a size, or a dynamic axis' name
};

struct Graph {
  std::string path;
  std::optional<std::string> cpu;         // the same graph for ONNX Runtime on the CPU
  std::optional<std::string> decomposed;  // and in operators that compiling providers take
  std::vector<GraphTensor> inputs;
  std::vector<GraphTensor> outputs;
  // Throws InputError when the graph has no tensor of that role.
  const GraphTensor& input(const Role& role) const;
  const GraphTensor& output(const Role& role) const;
  bool takes(const Role& role) const;  // whether it has an input of that role
};

struct TextEncoder {
  Graph graph;
  std::string tokenizer;  // path of the tokenizer's tables
  int max_length = 0;     // tokens
  int dropped = 0;        // of these, tokens at the start that the transformer does not get
  // Scheme of its quantised weights, which run on the CPU, or empty, and the largest relative error
  // of embeddings that the export measured.
  std::string quantized{};
  double quantization_error = 0;
};

// Encoders whose hidden states are joined along channels. A segment without encoders consists of
// zeros.
struct TextSegment {
  std::vector<std::string> encoders;
  int length = 0;
};

struct Prompt {
  int max_sequence_length = 0;
  std::map<std::string, TextEncoder> encoders;  // if empty, embeddings have to be given
  std::vector<TextSegment> text;
  int text_width = 0;
  std::vector<std::string> pooled;
  std::string text_mask;  // the encoder whose tokens the transformer's text_mask marks, or empty
  int mask_padding = 0;   // tokens of padding after them that text_mask marks too
  // The number of tokens in the text input: the sum of the segments' lengths.
  int text_length() const;
};

// The classes of a model that takes a class instead of a prompt.
struct Classes {
  int count = 0;
  int null = 0;  // the class of the unconditional branch
};

struct MassiveActivations {
  int block = 0;
  std::vector<int> channels;
  std::vector<float> ref;  // one for each of `channels`; zeros if empty
  std::vector<double> ratio;
  std::string found_by;
  bool massive = false;
};

struct Latent {
  int channels = 0;  // unpacked
  int vae_scale_factor = 0;
  double scaling_factor = 1.0;
  double shift_factor = 0.0;
  int max_height = 0;
  int max_width = 0;
  bool packed = false;      // the loop's latents are [N, tokens, channels * patch_size^2]
  bool fixed_size = false;  // max_height x max_width only
};

// Pictures that a run may take beside the prompt: their tokens follow those that are drawn.
struct References {
  int most = 0;
  int time = 0;  // the k-th one's tokens, from 1, have the positions (k * time, row, column)
  // Width and height in pixels: a picture is scaled to the one with the nearest aspect. If empty,
  // it is scaled down to `max_area` pixels, unless that is 0, and cut to whole tokens.
  std::vector<std::pair<int, int>> sizes;
  int max_area = 0;
  int min_side = 0;    // pixels; 0 sets no limit
  int max_aspect = 0;  // of the longer side to the other; 0 sets no limit
  bool only = false;   // whether pictures are references only, and no run starts from one
};

struct Defaults {
  int steps = 0;
  Guidance guidance;
  int height = 0;
  int width = 0;
  std::optional<double> distilled_guidance;
};

// Steps that may be skipped in a run of so many steps of this scheduler (SchedulerConfig::type), as
// intaglio.analysis.skipping measured it.
struct SkipSchedule {
  int steps = 0;
  std::string scheduler;
  std::vector<int> skipped;  // steps, from 0
  double tolerance = 0;
  // Measured on images of the model, and absent from older bundles: how often the model runs for an
  // image, in the mean, and the relative L2 error of the final latents.
  std::optional<double> evaluations, median_error, largest_error;
};

class Bundle {
 public:
  // Reads and validates bundle.json, and the size and SHA-256 of every file it lists. Throws
  // InputError, which names the file, if a file is missing, truncated, changed or outside the
  // folder, or if the manifest has a newer schema. The files stay open, and what is loaded later is
  // what was checked here, also when the folder has been renamed, replaced or deleted.
  static Bundle open(const std::filesystem::path& folder);

  std::filesystem::path folder;
  std::string name, family, source, license, dtype;
  Layout layout = Layout::forked;
  PredictionType prediction_type = PredictionType::velocity;
  std::map<std::string, std::string> producer;
  // The graphs by name: forked, or base and degraded, and in newer bundles conditioning.
  std::map<std::string, Graph> transformer_graphs;
  int blocks = 0;
  int patch_size = 0;     // latent cells
  int hidden_size = 0;    // channels of the image stream
  std::string quantized;  // scheme of the transformer's quantised weights, or empty
  // Largest relative errors that the export measured: of the "forward", and of D_c less D_0
  // ("unconditional") and less D_m ("degraded"). Empty without quantised weights.
  std::map<std::string, double> quantization_errors;
  std::vector<double> max_abs;  // largest |z| after each block on the calibration prompts, or empty
  MassiveActivations massive_activations;
  Latent latent;
  // CFG's result is scaled to the norm of D_c, token by token, before DG adds its term.
  bool cfg_rescale = false;
  SchedulerConfig scheduler;
  // A bundle has exactly one of the two.
  std::optional<Prompt> prompt;
  std::optional<Classes> classes;
  std::optional<Graph> vae_decoder;
  std::optional<Graph> vae_encoder;
  std::optional<References> references;  // empty if the model takes none
  Defaults defaults;
  bool distilled = false;  // to do without CFG
  std::vector<SkipSchedule> skipping;
  std::map<std::string, std::uint64_t> file_bytes;
  std::map<std::string, std::string> file_sha256;  // lower-case hexadecimal
  std::shared_ptr<const BundleFiles> files;        // null for a bundle that was not opened

  // The graph that every step runs: forked, or base.
  const Graph& transformer() const;
  // The graph that computes the modulations of a whole schedule and the prompt's projection before
  // the loop; null if every step computes them itself.
  const Graph* conditioning() const;
  // Whether no row of the transformer changes another. In an int8-dynamic bundle of an older
  // version they do, because they share a scale.
  bool has_independent_rows() const;
  // The input of that role, of the loop's graph or of the conditioning graph; null if there is
  // none.
  const GraphTensor* input(const Role& role) const;
  // The number of pixels along one patch. Height and width have to be multiples of it.
  int size_multiple() const { return latent.vae_scale_factor * patch_size; }
  // The number of image tokens of an image of this size in pixels.
  int token_count(int height, int width) const {
    return (height / size_multiple()) * (width / size_multiple());
  }
  // Returns the problems of this image size: one with the field height, one with width, both, or
  // none.
  std::vector<Problem> check_size(int height, int width) const;
  // Whether the transformer also outputs hidden_states_K and gate_K of every block K, as `intaglio
  // export --observe` makes it.
  bool observed() const;
};

}  // namespace intaglio
