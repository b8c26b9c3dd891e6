// Schedules and samplers in diffusers' numbers. No model in here: a denoiser is a function.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace intaglio {

// Parameters of diffusers' schedulers, by their names there unless said.
struct SchedulerConfig {
  // FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, DPMSolverMultistepScheduler or
  // DDIMScheduler.
  std::string type = "FlowMatchEulerDiscreteScheduler";
  // What the model gives: velocity (flow matching) or epsilon (variance preserving noise). The
  // bundle's word, where diffusers' DPMSolverMultistepScheduler says flow_prediction or epsilon.
  std::string prediction_type = "velocity";
  int num_train_timesteps = 1000;

  // Flow matching.
  double shift = 1.0;  // DPMSolverMultistepScheduler calls it flow_shift.
  bool use_dynamic_shifting = false;
  // FluxPipeline's and QwenImagePipeline's, for a configuration that lacks them; export writes
  // StableDiffusion3Pipeline's max_shift of 1.16 out.
  double base_shift = 0.5;
  double max_shift = 1.15;
  int base_image_seq_len = 256;
  int max_image_seq_len = 4096;
  std::string time_shift_type = "exponential";  // or linear
  double shift_terminal = 0.0;                  // 0: none
  // The pipeline gives FlowMatchEulerDiscreteScheduler its sigmas, linspace(1, 1/N, N), as FLUX's
  // and Qwen-Image's do. Other schedulers use their own.
  bool linspace_sigmas = false;

  // Variance preserving.
  double beta_start = 0.0001;
  double beta_end = 0.02;
  std::string beta_schedule = "linear";  // or scaled_linear, squaredcos_cap_v2
  // linspace, leading or trailing; empty: the class's own, leading for DDIMScheduler and linspace
  // for DPMSolverMultistepScheduler. from_config hands on only what a configuration says.
  std::string timestep_spacing;
  int steps_offset = 0;
  bool set_alpha_to_one = true;  // DDIMScheduler's
};

// diffusers' class for a name of the command line: euler, heun, dpmpp-2m, ddim. Throws UsageError
// naming those that fit a model of this prediction type.
std::string scheduler_type(const std::string& name, const std::string& prediction_type);

// x = alpha * clean + sigma * noise, with alpha = 1 - sigma (flow matching) or alpha^2 + sigma^2 =
// 1 (variance preserving).
struct Schedule {
  std::vector<float> sigmas;     // N + 1 values, the last one 0, or what set_alpha_to_one leaves
  std::vector<float> timesteps;  // N values, in the unit the model was trained on (0 to 1000)
  std::vector<float> alphas;     // N + 1 values
  // Where each step of sample_ddim ends, N values, or none where that is where the next one begins.
  // DDIMScheduler goes back num_train_timesteps / N, whatever its spacing of timesteps is.
  std::vector<float> end_sigmas, end_alphas;
  int steps() const { return static_cast<int>(timesteps.size()); }
  // The last `count` steps (image-to-image).
  Schedule last(int count) const;
};

// diffusers' set_timesteps(num_inference_steps=steps); `image_seq_len` (latent patches) matters for
// dynamic shifting only. Throws UsageError for steps < 1, for more steps than the scheduler has
// timesteps, and for a type it does not know or that does not fit the prediction type.
Schedule make_schedule(const SchedulerConfig& config, int steps, int image_seq_len);

// Where a sampler stands: `step` of `steps` (Heun's two evaluations share it).
struct StepPoint {
  int step = 0;
  int steps = 0;
  float sigma = 0;
  float timestep = 0;
  float alpha = 0;
};

// The clean data that a model's output at `point` means, in place: x - sigma * velocity, or
// (x - sigma * epsilon) / alpha. Throws UsageError for another prediction type.
void to_denoised(const std::string& prediction_type, std::span<const float> x,
                 const StepPoint& point, std::span<float> prediction);

// denoised = f(x, point): the prediction of clean data (see to_denoised).
// `x` and `denoised` have the sampler's size and never overlap.
using Denoiser = std::function<void(std::span<const float> x, const StepPoint& point,
                                    std::span<float> denoised)>;
// Sees x after each step; returning false stops the run.
using OnStep = std::function<bool(const StepPoint& point, std::span<const float> x)>;

// Each sampler turns x (noise at schedule.sigmas[0]) into a sample in place. They allocate before
// the loop only. They return the number of steps done, fewer than schedule.steps() when stopped.

// Euler's method on the probability flow, arXiv 2206.00364 algorithm 1 without churn; flow matching
// only.
int sample_euler(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                 const OnStep& on_step);
// Heun's second-order method, arXiv 2206.00364 algorithm 1; the last step is Euler's; flow matching
// only.
int sample_heun(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                const OnStep& on_step);
// DPM-Solver++(2M), arXiv 2211.01095 algorithm 2, with lambda = log(alpha / sigma).
int sample_dpmpp_2m(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                    const OnStep& on_step);
// DDIM, arXiv 2010.02502 equation 12 with eta 0.
int sample_ddim(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                const OnStep& on_step);

}  // namespace intaglio
