#include "pipeline/skipped_layers.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <variant>

namespace intaglio {

namespace {

constexpr double kScale = 2.8;  // Stability AI's for SD3.5 medium
constexpr Window kWindow{.start = 0.01, .end = 0.2};
constexpr double kDrawnScale = 0.25;  // of arXiv 2508.12880

// The widths of each block's modulations in the order in which it uses them, in units of the
// stream's channels; empty where `width`, the sum with those after the last block, does not fit.
using Widths = std::vector<std::vector<std::int64_t>>;

// Blocks of two streams. Those with a second attention come first, and the last one's text stream
// ends in it.
Widths sd3_widths(std::int64_t blocks, std::int64_t width) {
  const std::int64_t plain = 12 * (blocks - 1) + 6 + 2 + 2;
  const std::int64_t dual = (width - plain) / 3;
  if (width < plain || (width - plain) % 3 != 0 || dual > blocks) return {};
  Widths widths;
  for (std::int64_t block = 0; block < blocks; ++block)
    widths.push_back({block < dual ? 9 : 6, block < blocks - 1 ? 6 : 2});
  return widths;
}

// Blocks of two streams, and then blocks of one.
Widths flux_widths(std::int64_t blocks, std::int64_t width) {
  const std::int64_t single = 3 * blocks + 2;
  const std::int64_t both = (width - single) / 9;
  if (width < single || (width - single) % 9 != 0 || both > blocks) return {};
  Widths widths;
  for (std::int64_t block = 0; block < blocks; ++block)
    widths.push_back(block < both ? std::vector<std::int64_t>{6, 6} : std::vector<std::int64_t>{3});
  return widths;
}

Widths widths_of(const Bundle& bundle) {
  const Graph* graph = bundle.conditioning();
  if (!graph) return {};
  const auto* width = std::get_if<std::int64_t>(&graph->output(Role::modulation).axes.back());
  if (!width || *width % bundle.hidden_size != 0) return {};
  const std::int64_t units = *width / bundle.hidden_size;
  if (bundle.family == "sd3") return sd3_widths(bundle.blocks, units);
  if (bundle.family == "flux") return flux_widths(bundle.blocks, units);
  return {};
}

std::string flag_of(const GenerateOptions& options) {
  if (options.slg_layers.empty()) return "--slg-share";
  std::string text = "--slg-layers ";
  for (std::size_t i = 0; i < options.slg_layers.size(); ++i) {
    if (i > 0) text += ',';
    text += std::to_string(options.slg_layers[i]);
  }
  return text;
}

// What does not fit in the choice of blocks.
void check_choice(const Bundle& bundle, const GenerateOptions& options,
                  std::vector<Problem>& problems) {
  const std::vector<int>& layers = options.slg_layers;
  const std::string flag = flag_of(options);
  for (const int layer : layers) {
    if (layer >= 0 && layer < bundle.blocks) continue;
    problems.push_back({"slg_layers", flag + ": there is no block " + std::to_string(layer) +
                                          ": give numbers from 0 to " +
                                          std::to_string(bundle.blocks - 1)});
  }
  if (std::set(layers.begin(), layers.end()).size() < layers.size())
    problems.push_back({"slg_layers", flag + " names a block twice: give each one once"});
  if (!options.slg_share) return;
  if (!layers.empty())
    problems.push_back({"slg_share", "--slg-share draws the blocks, and " + flag +
                                         " names them: leave one of them out"});
  if (!(*options.slg_share > 0 && *options.slg_share <= 1))  // which NaN is not
    problems.push_back({"slg_share", "--slg-share must be above 0 and at most 1"});
}

}  // namespace

bool skips_layers(const GenerateOptions& options) {
  return !options.slg_layers.empty() || options.slg_share;
}

std::vector<int> drawn_layers(double share, int blocks, std::uint32_t step) {
  std::mt19937 engine(step);
  std::vector<std::pair<std::uint_fast32_t, int>> drawn;
  for (int block = 0; block < blocks; ++block) drawn.emplace_back(engine(), block);
  std::ranges::sort(drawn);
  drawn.resize(static_cast<std::size_t>(std::max(1L, std::lround(share * blocks))));
  std::vector<int> layers;
  for (const auto& [number, block] : drawn) layers.push_back(block);
  return layers;
}

void refuse_options_of_dg(const GenerateOptions& given, std::vector<Problem>& problems) {
  if (!skips_layers(given)) return;
  const std::tuple<const char*, const char*, bool> of_dg[] = {
      {"dg_window", "--dg-window", given.dg_window.has_value()},
      {"ma_keep", "--ma-keep", given.ma_keep.has_value()},
      {"ma_keep_by", "--ma-keep-by", given.ma_keep_by.has_value()},
      {"dg_region", "--dg-region", given.dg_region.has_value()},
      {"ma_channels", "--ma-channels", !given.ma_channels.empty()},
      {"ma_tokens", "--ma-tokens", given.ma_tokens.has_value()}};
  for (const auto& [field, flag, is_given] : of_dg)
    if (is_given)
      problems.push_back({field, std::string(flag) + " is for DG, and " + flag_of(given) +
                                     " takes its place: leave one of them out"});
}

std::vector<Columns> gate_columns(const Bundle& bundle, const std::vector<int>& layers) {
  const Widths widths = widths_of(bundle);
  std::vector<Columns> columns;
  std::int64_t unit = 0;
  for (std::size_t block = 0; block < widths.size(); ++block) {
    const bool skipped = std::ranges::find(layers, static_cast<int>(block)) != layers.end();
    for (const std::int64_t width : widths[block]) {
      // A shift, a scale and a gate for each part of the block.
      for (std::int64_t gate = 2; skipped && gate < width; gate += 3)
        columns.push_back(
            {(unit + gate) * bundle.hidden_size, (unit + gate + 1) * bundle.hidden_size});
      unit += width;
    }
  }
  return columns;
}

void set_skipped_layers(const Bundle& bundle, const GenerateOptions& options, Guidance& guidance,
                        std::vector<Problem>& problems) {
  const auto refuse = [&](const char* field, const std::string& message) {
    problems.push_back({field, message});
  };
  if (!skips_layers(options)) {
    if (options.slg_scale || options.slg_window)
      refuse(options.slg_scale ? "slg_scale" : "slg_window",
             std::string(options.slg_scale ? "--slg-scale" : "--slg-window") +
                 " is for blocks that are skipped: give --slg-layers or --slg-share too");
    return;
  }
  const std::string flag = flag_of(options);
  const char* field = options.slg_layers.empty() ? "slg_share" : "slg_layers";
  check_choice(bundle, options, problems);
  if (widths_of(bundle).empty())
    refuse(field, flag + " does not fit: the gates of " + bundle.name +
                      "'s blocks are not known, as they are in newly exported SD3 and "
                      "FLUX.1: leave it out");
  if (!options.dg_scale->is_always(0))
    refuse(field, flag +
                      " and --dg-scale each make D_m in their own way: give --dg-scale 0 or leave "
                      "the other out");
  if (bundle.observed())
    refuse(field, flag +
                      " does not fit a bundle that was exported with --observe, whose rows "
                      "are in the order of DG's: export it again without");
  const bool drawn = options.slg_share.has_value();
  const double scale = options.slg_scale.value_or(drawn ? kDrawnScale : kScale);
  const Window window = options.slg_window.value_or(drawn ? Window{} : kWindow);
  if (!std::isfinite(scale)) refuse("slg_scale", "--slg-scale must be a finite number");
  // Written so that NaN fails too.
  if (!(window.start >= 0 && window.start < window.end && window.end <= 1))
    refuse("slg_window",
           "--slg-window holds no part of the run: give start < end, both within 0..1");
  guidance.dg_scale = scale;
  guidance.dg_window = window;
  guidance.ma_keep = 0.0;
}

}  // namespace intaglio
