// Noise schedules, equal to those of diffusers' schedulers.
#pragma once

#include <string>
#include <vector>

namespace intaglio {

// What a model predicts: velocity = noise - clean (flow matching) or epsilon = noise (variance
// preserving).
enum class PredictionType { velocity, epsilon };

const char* name_of(PredictionType type);
// Throws UsageError for another name.
PredictionType prediction_type_from(const std::string& name);

// Parameters of diffusers' schedulers, by their names there unless a comment says otherwise.
struct SchedulerConfig {
  // FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, DPMSolverMultistepScheduler,
  // UniPCMultistepScheduler, LTXEulerAncestralRFScheduler, FlowMatchLCMScheduler or DDIMScheduler.
  std::string type = "FlowMatchEulerDiscreteScheduler";
  // Whether the algorithm_type of DPMSolverMultistepScheduler is sde-dpmsolver++.
  bool sde = false;
  // The bundle's name is used here. diffusers' multistep schedulers call velocity flow_prediction.
  PredictionType prediction_type = PredictionType::velocity;
  int num_train_timesteps = 1000;

  // Flow matching.
  double shift = 1.0;  // The multistep schedulers call it flow_shift.
  bool use_dynamic_shifting = false;
  // The defaults of FluxPipeline and QwenImagePipeline, for a configuration that lacks them. Export
  // always writes the max_shift of StableDiffusion3Pipeline, 1.16.
  double base_shift = 0.5;
  double max_shift = 1.15;
  int base_image_seq_len = 256;
  int max_image_seq_len = 4096;
  std::string time_shift_type = "exponential";  // or linear
  double shift_terminal = 0.0;                  // 0: none
  // How FlowMatchEulerDiscreteScheduler, or FlowMatchLCMScheduler, spaces the sigmas between the
  // first and the last one: empty (as shifted), karras, exponential or beta, for its
  // use_karras_sigmas and so on.
  std::string spacing;
  // Whether the pipeline gives FlowMatchEulerDiscreteScheduler the sigmas linspace(1, 1/N, N), as
  // those of FLUX and Qwen-Image do. Schedulers that do not have Euler's sigmas use their own.
  bool linspace_sigmas = false;
  // Whether the dynamic shift is that of the FLUX.2 pipelines, compute_empirical_mu. Then the four
  // parameters of the linear one above are not used.
  bool empirical_mu = false;

  // Variance preserving.
  double beta_start = 0.0001;
  double beta_end = 0.02;
  std::string beta_schedule = "linear";  // or scaled_linear, squaredcos_cap_v2
  // linspace, leading or trailing. If empty, the default of the class is used, as from_config of
  // diffusers does: leading for DDIMScheduler and linspace for DPMSolverMultistepScheduler.
  std::string timestep_spacing;
  int steps_offset = 0;
  bool set_alpha_to_one = true;  // of DDIMScheduler
};

// Returns diffusers' class for a name of the command line: euler, heun, dpmpp-2m, dpmpp-2m-sde,
// unipc, euler-ancestral, lcm or ddim. Throws UsageError, naming the schedulers that fit a model of
// this prediction type.
std::string scheduler_type(const std::string& name, PredictionType prediction_type);

// Returns the parameters with the type, and the algorithm, of a name of the command line. Throws as
// scheduler_type() does.
SchedulerConfig with_scheduler(SchedulerConfig config, const std::string& name);

// x = alpha * clean + sigma * noise, with alpha = 1 - sigma (flow matching) or alpha^2 + sigma^2 =
// 1 (variance preserving).
struct Schedule {
  std::vector<float> sigmas;     // N + 1 values; the last is 0 unless set_alpha_to_one is false
  std::vector<float> timesteps;  // N values, in the unit the model was trained on (0 to 1000)
  std::vector<float> alphas;     // N + 1 values
  // The ends of the steps of DDIM, N values; empty for other schedulers, whose steps end where the
  // next one begins. A
  // step of DDIMScheduler goes back by num_train_timesteps / N, whatever the spacing of its
  // timesteps.
  std::vector<float> end_sigmas, end_alphas;
  int steps() const { return static_cast<int>(timesteps.size()); }
  // Returns the last `count` steps, for image-to-image. Throws UsageError if there are fewer.
  Schedule last(int count) const;
};

// Returns the schedule of diffusers' set_timesteps(num_inference_steps=steps). `image_seq_len`, the
// number of latent patches, matters for dynamic shifting only. Throws UsageError for steps < 1, for
// more steps than the scheduler has timesteps, and for a type that is unknown or does not fit the
// prediction type.
Schedule make_schedule(const SchedulerConfig& config, int steps, int image_seq_len);

}  // namespace intaglio
