// The table of schedulers: a new one is a row here, its schedule and its sampler.
#include <array>
#include <cmath>
#include <string>
#include <string_view>

#include "intaglio/error.h"
#include "intaglio/sampling.h"
#include "sampling/schedule.h"

namespace intaglio {
namespace {

struct Scheduler {
  std::string_view name;  // on the command line
  std::string_view type;  // in diffusers
  Schedule (*schedule)(const SchedulerConfig&, int steps, int image_seq_len);
  Sampler sampler;
};

constexpr std::array kSchedulers = {
    Scheduler{"euler", "FlowMatchEulerDiscreteScheduler", flow_match_schedule, sample_euler},
    Scheduler{"heun", "FlowMatchHeunDiscreteScheduler", flow_match_schedule, sample_heun},
    Scheduler{"dpmpp-2m", "DPMSolverMultistepScheduler", dpm_flow_schedule, sample_dpmpp_2m},
};

std::string listed(std::string_view Scheduler::* field) {
  std::string list;
  for (const Scheduler& scheduler : kSchedulers) {
    if (!list.empty()) list += ", ";
    list += scheduler.*field;
  }
  return list;
}

const Scheduler& find(std::string_view Scheduler::* field, const std::string& value) {
  for (const Scheduler& scheduler : kSchedulers) {
    if (scheduler.*field == value) return scheduler;
  }
  throw UsageError("unknown scheduler \"" + value + "\": use one of " + listed(field));
}

void check(const SchedulerConfig& config, int steps) {
  if (steps < 1) throw UsageError("steps " + std::to_string(steps) + ": give 1 or more");
  if (config.num_train_timesteps < 1) throw UsageError("num_train_timesteps must be 1 or more");
  if (!(config.shift > 0.0) || !std::isfinite(config.shift)) {
    throw UsageError("the scheduler's shift must be a finite number above 0");
  }
  if (!(config.shift_terminal >= 0.0 && config.shift_terminal < 1.0)) {
    throw UsageError("the scheduler's shift_terminal must be at least 0 and below 1");
  }
  if (config.time_shift_type != "exponential" && config.time_shift_type != "linear") {
    throw UsageError("unknown time_shift_type \"" + config.time_shift_type +
                     "\": use exponential or linear");
  }
  if (config.use_dynamic_shifting && config.base_image_seq_len == config.max_image_seq_len) {
    throw UsageError("base_image_seq_len and max_image_seq_len must differ for dynamic shifting");
  }
}

}  // namespace

std::string scheduler_type(const std::string& name) {
  return std::string(find(&Scheduler::name, name).type);
}

Sampler find_sampler(const std::string& scheduler_type) {
  return find(&Scheduler::type, scheduler_type).sampler;
}

Schedule make_schedule(const SchedulerConfig& config, int steps, int image_seq_len) {
  const Scheduler& scheduler = find(&Scheduler::type, config.type);
  check(config, steps);
  Schedule schedule = scheduler.schedule(config, steps, image_seq_len);
  for (const float sigma : schedule.sigmas) {
    if (std::isfinite(sigma) && sigma >= 0.0F) continue;
    throw UsageError("the scheduler's parameters give no usable noise levels for " +
                     std::to_string(steps) + " steps");
  }
  return schedule;
}

}  // namespace intaglio
