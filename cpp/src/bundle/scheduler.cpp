#include "bundle/scheduler.h"

#include <initializer_list>
#include <string>
#include <utility>

namespace intaglio {

namespace {

// A parameter that was ignored would give other pictures than diffusers draws.
[[noreturn]] void refuse_sampling(const Node& parameter) {
  parameter.refuse("is something that this version does not sample with");
}

void check_off(const Node& node, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    bool on = false;
    node.get_if(key, on);
    if (on) refuse_sampling(node.at(key));
  }
}

void check_null(const Node& node, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (node.has(key) && !node.at(key).is_null()) refuse_sampling(node.at(key));
  }
}

void check_variance_preserving(const Node& node) {
  std::string prediction = "epsilon";
  node.get_if("prediction_type", prediction);
  if (prediction != "epsilon") refuse_sampling(node.at("prediction_type"));
  check_off(node, {"thresholding", "rescale_betas_zero_snr"});
  check_null(node, {"trained_betas"});
}

// Only DDIMScheduler as plan_ddim runs it. It clips unless the configuration says otherwise.
void check_ddim(const Node& node) {
  check_variance_preserving(node);
  if (node.get<bool>("clip_sample")) refuse_sampling(node.at("clip_sample"));
}

// Refuses a parameter with another value than the only one that is sampled with.
void check_only(const Node& node,
                std::initializer_list<std::pair<const char*, const char*>> parameters) {
  for (const auto& [key, only] : parameters) {
    std::string value = only;
    node.get_if(key, value);
    if (value != only) refuse_sampling(node.at(key));
  }
}

// What DPMSolverMultistepScheduler and UniPCMultistepScheduler have in common. What the manifest
// leaves out is diffusers' default, so for a flow model it has to say where it differs.
void check_multistep(const Node& node, PredictionType prediction_type) {
  if (prediction_type == PredictionType::velocity) {
    if (!node.get<bool>("use_flow_sigmas")) refuse_sampling(node.at("use_flow_sigmas"));
    if (node.get<std::string>("prediction_type") != "flow_prediction")
      refuse_sampling(node.at("prediction_type"));
  } else {
    check_off(node, {"use_flow_sigmas"});
    check_variance_preserving(node);
  }
  int order = 2;
  node.get_if("solver_order", order);
  if (order != 2) refuse_sampling(node.at("solver_order"));
  bool lower_order_final = true;
  node.get_if("lower_order_final", lower_order_final);
  if (!lower_order_final) refuse_sampling(node.at("lower_order_final"));
  check_off(node, {"thresholding"});
  check_only(node, {{"final_sigmas_type", "zero"}});
}

// Only DPMSolverMultistepScheduler as plan_dpmpp_2m and plan_dpmpp_2m_sde run it.
bool read_dpm_solver(const Node& node, PredictionType prediction_type) {
  check_multistep(node, prediction_type);
  // With variance_type diffusers would use only three channels of the prediction.
  if (prediction_type == PredictionType::epsilon)
    check_null(node, {"lambda_min_clipped", "variance_type"});
  check_off(node, {"use_lu_lambdas", "euler_at_final"});
  std::string algorithm = "dpmsolver++";
  node.get_if("algorithm_type", algorithm);
  const bool sde = algorithm == "sde-dpmsolver++";
  if (!sde) check_only(node, {{"algorithm_type", "dpmsolver++"}});
  check_only(node, {{"solver_type", "midpoint"}});
  return sde;
}

// Only UniPCMultistepScheduler as plan_unipc runs it.
void check_unipc(const Node& node, PredictionType prediction_type) {
  check_multistep(node, prediction_type);
  bool predict_x0 = true;
  node.get_if("predict_x0", predict_x0);
  if (!predict_x0) refuse_sampling(node.at("predict_x0"));
  check_null(node, {"solver_p"});
  check_only(node, {{"solver_type", "bh2"}});
  if (node.has("disable_corrector") && !node.at("disable_corrector").items().empty())
    refuse_sampling(node.at("disable_corrector"));
}

}  // namespace

SchedulerConfig read_scheduler(const Node& root, PredictionType prediction_type) {
  const Node node = root.at("scheduler");
  SchedulerConfig config;
  config.type = node.get<std::string>("type");
  config.prediction_type = prediction_type;
  node.get_if("num_train_timesteps", config.num_train_timesteps);
  node.get_if("shift", config.shift);
  node.get_if("flow_shift", config.shift);
  node.get_if("use_dynamic_shifting", config.use_dynamic_shifting);
  node.get_if("base_shift", config.base_shift);
  node.get_if("max_shift", config.max_shift);
  node.get_if("base_image_seq_len", config.base_image_seq_len);
  node.get_if("max_image_seq_len", config.max_image_seq_len);
  node.get_if("time_shift_type", config.time_shift_type);
  node.get_if("shift_terminal", config.shift_terminal);
  node.get_if("beta_start", config.beta_start);
  node.get_if("beta_end", config.beta_end);
  node.get_if("beta_schedule", config.beta_schedule);
  node.get_if("timestep_spacing", config.timestep_spacing);
  node.get_if("steps_offset", config.steps_offset);
  node.get_if("set_alpha_to_one", config.set_alpha_to_one);
  if (root.has("sigmas")) {
    if (root.get<std::string>("sigmas") != "linspace") refuse_sampling(root.at("sigmas"));
    config.linspace_sigmas = true;
  }
  if (root.has("mu")) {
    if (root.get<std::string>("mu") != "empirical") refuse_sampling(root.at("mu"));
    config.empirical_mu = true;
  }
  for (const std::string spacing : {"karras", "exponential", "beta"}) {
    const std::string key = "use_" + spacing + "_sigmas";
    bool on = false;
    node.get_if(key.c_str(), on);
    if (!on) continue;
    const bool spaces =
        config.type == "FlowMatchEulerDiscreteScheduler" || config.type == "FlowMatchLCMScheduler";
    if (!spaces || !config.spacing.empty()) refuse_sampling(node.at(key.c_str()));
    config.spacing = spacing;
  }
  check_off(node, {"invert_sigmas"});
  check_null(node, {"scale_factors"});
  bool stochastic = false;
  node.get_if("stochastic_sampling", stochastic);
  // Euler's class then takes the steps of FlowMatchLCMScheduler, and no other class reads this.
  if (stochastic && config.type == "FlowMatchEulerDiscreteScheduler")
    config.type = "FlowMatchLCMScheduler";
  if (config.type == "DPMSolverMultistepScheduler")
    config.sde = read_dpm_solver(node, prediction_type);
  if (config.type == "UniPCMultistepScheduler") check_unipc(node, prediction_type);
  if (config.type == "DDIMScheduler" && prediction_type == PredictionType::epsilon)
    check_ddim(node);
  return config;
}

}  // namespace intaglio
