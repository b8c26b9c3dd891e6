#include "pipeline/suppression.h"

#include <string>

#include "pipeline/skipped_layers.h"

namespace intaglio {

Ramp by_timestep(const Ramp& keep, const Schedule& schedule, int num_train_timesteps) {
  std::vector<double> values;
  for (const float timestep : schedule.timesteps) {
    const double share = static_cast<double>(timestep) / num_train_timesteps;
    values.push_back(keep.last + (keep.first - keep.last) * share);
  }
  return Ramp(values);
}

void check_region(const GenerateOptions& options, std::vector<Problem>& problems) {
  const auto check = [&](const char* field, const std::string& flag,
                         const std::optional<std::string>& value, const std::string& one,
                         const std::string& other) {
    if (!value || *value == one || *value == other) return;
    problems.push_back({field, flag + " " + *value + " is unknown: give " + one + " or " + other});
  };
  check("ma_keep_by", "--ma-keep-by", options.ma_keep_by, "step", "timestep");
  check("dg_region", "--dg-region", options.dg_region, "all", "mask");
  if (options.ma_keep_by == "timestep" && !options.ma_keep->each.empty()) {
    problems.push_back({"ma_keep_by",
                        "--ma-keep-by timestep takes --ma-keep as a number or two, such as 0:1, "
                        "and no list"});
  }
  if (options.dg_region != "mask") return;
  if (!options.ma_tokens && !options.mask) {
    problems.push_back(
        {"dg_region",
         "--dg-region mask acts on the tokens of --ma-tokens or --mask: give one of them too"});
  }
  if (options.guidance_tag.value_or(1) != 1) {
    problems.push_back({"dg_region",
                        "--dg-region mask does not fit --guidance-tag, which spreads DG's term "
                        "over the picture: leave one of them out"});
  }
}

void set_transport(const Bundle& bundle, const GenerateOptions& options, Guidance& guidance,
                   std::vector<Problem>& problems) {
  if (!options.transport_from) return;
  const auto refuse = [&](const std::string& message) {
    problems.push_back({"transport_from", "--transport-from " + message});
  };
  if (!bundle.transformer().takes(Role::source)) {
    refuse("does not fit: the graph of " + bundle.name +
           " has no input for it, as older bundles and those of layout dual have none: export it "
           "again with --layout forked");
  }
  if (bundle.classes || options.prompt_embeds) {
    refuse(bundle.classes ? "does not fit a model that draws classes: leave it out"
                          : "goes with --prompt, since both texts are encoded together: give "
                            "--prompt in place of embeddings, or leave it out");
  }
  if (skips_layers(options) || !options.dg_scale->is_always(0)) {
    refuse(
        "takes the place of DG and of skipped blocks: give --dg-scale 0 and neither --slg-layers "
        "nor --slg-share, or leave it out");
  }
  if (options.dg_region == "mask") {
    refuse("is on the tokens of --ma-tokens by itself: leave --dg-region out");
  }
  if (bundle.observed()) {
    refuse(
        "does not fit a bundle that was exported with --observe, whose rows are in the order of "
        "DG's: export it again without");
  }
  guidance.transports = true;
}

}  // namespace intaglio
