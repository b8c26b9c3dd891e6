// Schedules and samplers in diffusers' numbers. No model in here: a denoiser is a function.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace intaglio {

// Parameters of diffusers' flow-matching schedulers, by their names there.
struct SchedulerConfig {
  // FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler or DPMSolverMultistepScheduler.
  std::string type = "FlowMatchEulerDiscreteScheduler";
  int num_train_timesteps = 1000;
  double shift = 1.0;  // DPMSolverMultistepScheduler calls it flow_shift.
  bool use_dynamic_shifting = false;
  double base_shift = 0.5;
  double max_shift = 1.15;
  int base_image_seq_len = 256;
  int max_image_seq_len = 4096;
  std::string time_shift_type = "exponential";  // or linear
  double shift_terminal = 0.0;                  // 0: none
};

// The names the command line takes: euler, heun, dpmpp-2m. Throws UsageError listing them.
std::string scheduler_type(const std::string& name);

struct Schedule {
  std::vector<float> sigmas;     // N + 1 values, the last one 0
  std::vector<float> timesteps;  // N values, in the unit the model was trained on (sigma * 1000)
  int steps() const { return static_cast<int>(timesteps.size()); }
  // The last `count` steps (image-to-image).
  Schedule last(int count) const;
};

// diffusers' set_timesteps(num_inference_steps=steps); `image_seq_len` (latent patches) matters for
// dynamic shifting only. Throws UsageError for steps < 1 and for a type it does not know.
Schedule make_schedule(const SchedulerConfig& config, int steps, int image_seq_len);

// Where a sampler stands: `step` of `steps` (Heun's two evaluations share it).
struct StepPoint {
  int step = 0;
  int steps = 0;
  float sigma = 0;
  float timestep = 0;
};

// denoised = f(x, point): the prediction of clean data (for flow models x - sigma * velocity).
// `x` and `denoised` have the sampler's size and never overlap.
using Denoiser = std::function<void(std::span<const float> x, const StepPoint& point,
                                    std::span<float> denoised)>;
// Sees x after each step; returning false stops the run.
using OnStep = std::function<bool(const StepPoint& point, std::span<const float> x)>;

// Each sampler turns x (noise at schedule.sigmas[0]) into a sample in place. They allocate before
// the loop only. They return the number of steps done, fewer than schedule.steps() when stopped.

// Euler's method on the probability flow, arXiv 2206.00364 algorithm 1 without churn.
int sample_euler(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                 const OnStep& on_step);
// Heun's second-order method, arXiv 2206.00364 algorithm 1; the last step is Euler's.
int sample_heun(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                const OnStep& on_step);
// DPM-Solver++(2M), arXiv 2211.01095 algorithm 2, with lambda = log((1 - sigma) / sigma).
int sample_dpmpp_2m(const Denoiser& denoise, std::span<float> x, const Schedule& schedule,
                    const OnStep& on_step);

using Sampler = int (*)(const Denoiser&, std::span<float>, const Schedule&, const OnStep&);
Sampler find_sampler(const std::string& scheduler_type);

}  // namespace intaglio
