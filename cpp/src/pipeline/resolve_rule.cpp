#include "pipeline/resolve_rule.h"

#include <array>
#include <string>
#include <utility>

namespace intaglio {

namespace {

using Kind = CfgRule::Kind;
using Problems = std::vector<Problem>;

constexpr std::array kKinds{std::pair{"cfg", Kind::cfg}, std::pair{"apg", Kind::apg},
                            std::pair{"cfg-zero", Kind::cfg_zero}, std::pair{"tcfg", Kind::tcfg},
                            std::pair{"mambo-g", Kind::mambo_g}};

void set_kind(CfgRule& rule, const std::string& name, Problems& problems) {
  for (const auto& [known, kind] : kKinds) {
    if (name != known) continue;
    rule.kind = kind;
    return;
  }
  problems.push_back(
      {"guidance", "--guidance " + name + " is unknown: give cfg, apg, cfg-zero, tcfg or mambo-g"});
}

// The rule as it was asked for: the field, and "--guidance apg" or "--guidance-rescale".
std::pair<const char*, std::string> asked_rule(const GenerateOptions& options) {
  if (options.guidance && *options.guidance != "cfg")
    return {"guidance", "--guidance " + *options.guidance};
  if (options.guidance_rescale.value_or(0.0) != 0)
    return {"guidance_rescale", "--guidance-rescale"};
  return {"guidance_normalization", "--guidance-normalization"};
}

}  // namespace

CfgRule resolve_rule(const Bundle& bundle, const GenerateOptions& options, Problems& problems) {
  CfgRule rule;
  set_kind(rule, options.guidance.value_or("cfg"), problems);
  const auto set = [&](const char* field, const std::string& flag, auto& number, const auto& given,
                       const char* name, Kind kind) {
    if (!given) return;
    number = *given;
    if (rule.kind == kind) return;
    problems.push_back(
        {field, flag + " belongs to --guidance " + name + ": give that too, or leave it out"});
  };
  set("guidance_eta", "--guidance-eta", rule.eta, options.guidance_eta, "apg", Kind::apg);
  set("guidance_norm_threshold", "--guidance-norm-threshold", rule.norm_threshold,
      options.guidance_norm_threshold, "apg", Kind::apg);
  set("guidance_momentum", "--guidance-momentum", rule.momentum, options.guidance_momentum, "apg",
      Kind::apg);
  set("guidance_zero_steps", "--guidance-zero-steps", rule.zero_steps, options.guidance_zero_steps,
      "cfg-zero", Kind::cfg_zero);
  set("guidance_alpha", "--guidance-alpha", rule.alpha, options.guidance_alpha, "mambo-g",
      Kind::mambo_g);
  rule.rescale = options.guidance_rescale.value_or(0.0);
  rule.normalization = options.guidance_normalization.value_or(0.0);
  const auto [field, flag] = asked_rule(options);
  if (rule.needs_sums() && bundle.cfg_rescale) {
    problems.push_back({field, flag + " does not fit: CFG of " + bundle.name +
                                   " has a rescaling of its own: leave it out"});
  }
  if (rule.kind == Kind::cfg_zero && bundle.prediction_type != PredictionType::velocity) {
    problems.push_back({field, "--guidance cfg-zero is for flow matching models, and " +
                                   bundle.name + " predicts epsilon: give another rule"});
  }
  return rule;
}

Correction resolve_correction(const Bundle& bundle, const GenerateOptions& options,
                              Problems& problems) {
  const Correction correction{.tag = options.guidance_tag.value_or(1.0),
                              .prev = options.guidance_prev.value_or(0.0)};
  const bool euler = options.scheduler ? *options.scheduler == "euler"
                                       : bundle.scheduler.type == "FlowMatchEulerDiscreteScheduler";
  if (correction.tag != 1 && (!euler || bundle.prediction_type != PredictionType::velocity))
    problems.push_back(
        {"guidance_tag",
         "--guidance-tag is for --scheduler euler, where a step is a multiple of the "
         "prediction: leave it out, or take another scheduler or model"});
  return correction;
}

std::optional<Problem> rule_without_cfg(const GenerateOptions& options, bool unconditional) {
  const bool named = options.guidance && *options.guidance != "cfg";
  const bool asked = named || options.guidance_rescale.value_or(0.0) != 0 ||
                     options.guidance_normalization.value_or(0.0) != 0;
  if (unconditional || !asked) return std::nullopt;
  const auto [field, flag] = asked_rule(options);
  return Problem{field,
                 flag + " needs CFG, and no step has it: give a --cfg-scale above 1" +
                     (options.guidance_zero_steps ? " and fewer --guidance-zero-steps" : "") +
                     ", or leave it out"};
}

}  // namespace intaglio
