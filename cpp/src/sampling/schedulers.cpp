// The table of schedulers. A new one needs a row here, its schedule and its plan.
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/nearest.h"
#include "intaglio/error.h"
#include "intaglio/sampling.h"
#include "sampling/plan.h"
#include "sampling/schedule.h"

namespace intaglio {
namespace {

struct Scheduler {
  std::string_view name;      // on the command line
  std::string_view type;      // in diffusers
  bool sde;                   // SchedulerConfig::sde
  PredictionType prediction;  // of the models that it samples
  Schedule (*schedule)(const SchedulerConfig&, int steps, int image_seq_len);
  Planner planner;
};

constexpr auto kVelocity = PredictionType::velocity, kEpsilon = PredictionType::epsilon;

constexpr std::array kSchedulers = {
    Scheduler{"euler", "FlowMatchEulerDiscreteScheduler", false, kVelocity, flow_match_schedule,
              plan_euler},
    Scheduler{"heun", "FlowMatchHeunDiscreteScheduler", false, kVelocity, flow_match_schedule,
              plan_heun},
    Scheduler{"dpmpp-2m", "DPMSolverMultistepScheduler", false, kVelocity, dpm_flow_schedule,
              plan_dpmpp_2m},
    Scheduler{"dpmpp-2m", "DPMSolverMultistepScheduler", false, kEpsilon, dpm_vp_schedule,
              plan_dpmpp_2m},
    Scheduler{"dpmpp-2m-sde", "DPMSolverMultistepScheduler", true, kVelocity, dpm_flow_schedule,
              plan_dpmpp_2m_sde},
    Scheduler{"dpmpp-2m-sde", "DPMSolverMultistepScheduler", true, kEpsilon, dpm_vp_schedule,
              plan_dpmpp_2m_sde},
    Scheduler{"unipc", "UniPCMultistepScheduler", false, kVelocity, unipc_flow_schedule,
              plan_unipc},
    Scheduler{"unipc", "UniPCMultistepScheduler", false, kEpsilon, dpm_vp_schedule, plan_unipc},
    Scheduler{"euler-ancestral", "LTXEulerAncestralRFScheduler", false, kVelocity,
              flow_match_schedule, plan_euler_ancestral},
    Scheduler{"lcm", "FlowMatchLCMScheduler", false, kVelocity, flow_match_schedule, plan_lcm},
    Scheduler{"ddim", "DDIMScheduler", false, kEpsilon, ddim_schedule, plan_ddim},
};

// Lists the names or types of the schedulers for such models, or of all where no prediction type is
// given.
std::string listed(std::string_view Scheduler::* field, std::optional<PredictionType> prediction) {
  std::string list;
  std::string_view last;
  for (const Scheduler& scheduler : kSchedulers) {
    if (prediction && scheduler.prediction != *prediction) continue;
    if (last == scheduler.*field) continue;
    if (!list.empty()) list += ", ";
    list += last = scheduler.*field;
  }
  return list;
}

// Says which scheduler may be meant, also by one of diffusers' classes.
std::string meant(const std::string& value) {
  std::vector<std::string> names;
  for (const Scheduler& scheduler : kSchedulers) {
    if (scheduler.type == value) return " (here it is called " + std::string(scheduler.name) + ")";
    names.emplace_back(scheduler.name);
  }
  return did_you_mean(value, names);
}

const Scheduler& find(std::string_view Scheduler::* field, const std::string& value,
                      std::optional<PredictionType> prediction) {
  bool known = false;
  for (const Scheduler& scheduler : kSchedulers) {
    if (scheduler.*field != value) continue;
    known = true;
    if (!prediction || scheduler.prediction == *prediction) return scheduler;
  }
  const std::string fitting = listed(field, prediction);
  if (!known) {
    throw UsageError("unknown scheduler \"" + value + "\"" + meant(value) + ": use one of " +
                     fitting);
  }
  throw UsageError("scheduler \"" + value + "\" does not fit a model that predicts " +
                   name_of(*prediction) + ": use one of " + fitting);
}

void check(const SchedulerConfig& config, int steps) {
  if (steps < 1) throw UsageError("--steps " + std::to_string(steps) + ": give 1 or more");
  constexpr int limit = 1000000;  // beyond any model; keeps a bad file from asking for gigabytes
  if (config.num_train_timesteps < 1 || config.num_train_timesteps > limit) {
    throw UsageError("num_train_timesteps must be from 1 to " + std::to_string(limit));
  }
  if (config.steps_offset < 0 || config.steps_offset >= config.num_train_timesteps) {
    throw UsageError("steps_offset must be at least 0 and below num_train_timesteps");
  }
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
  constexpr std::array spacings = {"", "karras", "exponential", "beta"};
  if (std::ranges::find(spacings, config.spacing) == spacings.end()) {
    throw UsageError("unknown spacing of sigmas \"" + config.spacing +
                     "\": use karras, exponential or beta");
  }
  if (config.use_dynamic_shifting && !config.empirical_mu &&
      config.base_image_seq_len == config.max_image_seq_len) {
    throw UsageError("base_image_seq_len and max_image_seq_len must differ for dynamic shifting");
  }
}

}  // namespace

const char* name_of(PredictionType type) {
  return type == PredictionType::velocity ? "velocity" : "epsilon";
}

PredictionType prediction_type_from(const std::string& name) {
  for (const PredictionType type : {PredictionType::velocity, PredictionType::epsilon})
    if (name == name_of(type)) return type;
  throw UsageError("unknown prediction type \"" + name + "\": use velocity or epsilon");
}

std::string scheduler_type(const std::string& name, PredictionType prediction_type) {
  return std::string(find(&Scheduler::name, name, prediction_type).type);
}

SchedulerConfig with_scheduler(SchedulerConfig config, const std::string& name) {
  const Scheduler& scheduler = find(&Scheduler::name, name, config.prediction_type);
  config.type = scheduler.type;
  config.sde = scheduler.sde;
  return config;
}

Planner find_planner(const SchedulerConfig& config) {
  for (const Scheduler& scheduler : kSchedulers)
    if (scheduler.type == config.type && scheduler.sde == config.sde) return scheduler.planner;
  return find(&Scheduler::type, config.type, std::nullopt).planner;
}

bool adds_noise(const SchedulerConfig& config) {
  const Planner planner = find_planner(config);
  return planner == plan_dpmpp_2m_sde || planner == plan_euler_ancestral || planner == plan_lcm;
}

Schedule make_schedule(const SchedulerConfig& config, int steps, int image_seq_len) {
  const Scheduler& scheduler = find(&Scheduler::type, config.type, config.prediction_type);
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
