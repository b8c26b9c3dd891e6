// The schedules of each family of schedulers. make_schedule chooses among them.
#pragma once

#include <vector>

#include "intaglio/sampling.h"

namespace intaglio {

// np.linspace: the last value is exactly `stop`; a single value is `start`.
std::vector<double> linspace(double start, double stop, int count);

// FlowMatchEulerDiscreteScheduler.set_timesteps(steps, mu) as StableDiffusion3Pipeline calls it, or
// with sigmas as FluxPipeline does.
// FlowMatchLCMScheduler and LTXEulerAncestralRFScheduler have the same sigmas, and so has
// FlowMatchHeunDiscreteScheduler; it only lists the inner ones twice, once for each evaluation. It
// has no dynamic shifting of its own, so it gets that of Euler.
Schedule flow_match_schedule(const SchedulerConfig& config, int steps, int image_seq_len);

// DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=shift).set_timesteps(steps, mu).
// It ignores shift_terminal.
Schedule dpm_flow_schedule(const SchedulerConfig& config, int steps, int image_seq_len);

// UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=shift).set_timesteps(steps, mu).
Schedule unipc_flow_schedule(const SchedulerConfig& config, int steps, int image_seq_len);

// DPMSolverMultistepScheduler.set_timesteps(steps) on a variance preserving model.
Schedule dpm_vp_schedule(const SchedulerConfig& config, int steps, int image_seq_len);

// DDIMScheduler.set_timesteps(steps).
Schedule ddim_schedule(const SchedulerConfig& config, int steps, int image_seq_len);

}  // namespace intaglio
