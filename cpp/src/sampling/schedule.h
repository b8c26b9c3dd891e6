// Schedules by scheduler family; make_schedule picks one.
#pragma once

#include <vector>

#include "intaglio/sampling.h"

namespace intaglio {

// np.linspace: the last value is `stop` itself; one value is `start`.
std::vector<double> linspace(double start, double stop, int count);

// FlowMatchEulerDiscreteScheduler.set_timesteps(steps, mu) as StableDiffusion3Pipeline calls it, or
// with sigmas as FluxPipeline does.
// FlowMatchHeunDiscreteScheduler has the same sigmas; it only lists inner ones twice, once for each
// evaluation, and knows no dynamic shifting: there it gets Euler's.
Schedule flow_match_schedule(const SchedulerConfig& config, int steps, int image_seq_len);

// DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=shift).set_timesteps(steps, mu).
// shift_terminal means nothing to it.
Schedule dpm_flow_schedule(const SchedulerConfig& config, int steps, int image_seq_len);

// DPMSolverMultistepScheduler.set_timesteps(steps) on a variance preserving model.
Schedule dpm_vp_schedule(const SchedulerConfig& config, int steps, int image_seq_len);

// DDIMScheduler.set_timesteps(steps).
Schedule ddim_schedule(const SchedulerConfig& config, int steps, int image_seq_len);

}  // namespace intaglio
