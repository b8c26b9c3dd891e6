// The loop's arithmetic, element by element and in float32.
#pragma once

#include <cassert>
#include <cmath>
#include <cstddef>
#include <variant>

#include "intaglio/cfg_rule.h"

namespace intaglio {

// The last two differences of a branch from D_c, for steps that do not run the branch. Both are
// null where no step of the run reuses them.
struct DeltaCache {
  float* newer = nullptr;
  float* older = nullptr;
};

// A branch's difference from D_c: computed from its prediction, or taken from the line through the
// two cached ones.
struct Delta {
  bool reused = false;
  // The distance from the newer difference, in units of the distance between the two; 0 takes the
  // newer one.
  float slope = 0;

  float operator()(float conditional, const float* branch, const DeltaCache& cache,
                   std::size_t i) const {
    if (reused) return cache.newer[i] + slope * (cache.newer[i] - cache.older[i]);
    const float delta = conditional - branch[i];
    if (cache.newer) {
      cache.older[i] = cache.newer[i];
      cache.newer[i] = delta;
    }
    return delta;
  }
};

// D = D_c + lambda (D_c - D_0) + w (D_c - D_m), arXiv 2510.11538. Both differences are taken from
// D_c, and the sum runs from left to right. A branch that did not run is not read. With token_size,
// D = s (D_c + lambda (D_c - D_0)) + w (D_c - D_m), where s gives each token the norm of D_c, as
// Qwen-Image's pipeline does; combine_tokens() of core/guided_step.cpp computes it.
struct Combine {
  float lambda = 0;
  float w = 0;
  bool has_unconditional = false;
  bool has_degraded = false;
  Delta unconditional_delta;
  Delta degraded_delta;
  std::size_t token_size = 0;  // elements of a token; 0 scales nothing
  // With a rule other than CFG, D = rule(D_c, D_0) + w (D_c - D_m), as combine_images() of
  // core/guided_step.cpp computes it.
  CfgRule rule = {};
  bool zero = false;  // D = 0
  // Applied to D, as correct_images() of core/guided_step.cpp does.
  Correction correction = {};

  bool scales_tokens() const { return token_size > 0 && has_unconditional; }
  bool needs_sums() const { return rule.needs_sums() && has_unconditional; }
  float operator()(const float* conditional, const float* unconditional, const float* degraded,
                   std::size_t i, const DeltaCache& unconditional_cache = {},
                   const DeltaCache& degraded_cache = {}) const {
    assert(!scales_tokens() && !needs_sums());
    const float guided = with_cfg(conditional[i], unconditional, i, unconditional_cache);
    return with_dg(guided, conditional[i], degraded, i, degraded_cache);
  }
  float with_cfg(float conditional, const float* unconditional, std::size_t i,
                 const DeltaCache& cache) const {
    if (!has_unconditional) return conditional;
    return conditional + lambda * unconditional_delta(conditional, unconditional, cache, i);
  }
  float with_dg(float guided, float conditional, const float* degraded, std::size_t i,
                const DeltaCache& cache) const {
    if (!has_degraded) return guided;
    return guided + w * degraded_delta(conditional, degraded, cache, i);
  }
};

// The last two guided predictions that the model computed. Both are null where no step of the run
// is skipped.
struct GuidedCache {
  float* newer = nullptr;
  float* older = nullptr;
};

// How the guided prediction of an evaluation relates to the line through the two cached ones: it is
// taken from there in a step that is skipped, and becomes one of them in a step that runs.
struct GuidedLine {
  bool skipped = false;
  bool compared = false;   // whether there is a line that a computed prediction can be compared to
  bool same_time = false;  // whether the newer prediction was made at the same timestep
  // The distance from the newer prediction, in units of the distance between the two.
  float slope = 0;

  float at(const GuidedCache& cache, std::size_t i) const {
    return cache.newer[i] + slope * (cache.newer[i] - cache.older[i]);
  }
  // Two predictions of one timestep give no line, so that the later one takes the other's place.
  void keep(float guided, const GuidedCache& cache, std::size_t i) const {
    if (!same_time) cache.older[i] = cache.newer[i];
    cache.newer[i] = guided;
  }
};

// |D - D'| / |D| over one image, where D' is on the line.
struct LineDistance {
  double missed = 0, whole = 0;  // sums of squares
  void add(float guided, float on_line) {
    const double difference = static_cast<double>(guided) - static_cast<double>(on_line);
    missed += difference * difference;
    whole += static_cast<double>(guided) * static_cast<double>(guided);
  }
  float value() const { return missed == 0 ? 0.0F : static_cast<float>(std::sqrt(missed / whole)); }
};

// The clean data that a prediction means: x - sigma * velocity, or (x - sigma * epsilon) / alpha.
struct ToDenoised {
  bool velocity = true;
  float sigma = 0;
  float alpha = 1;

  float operator()(float x, float prediction) const {
    const float scaled = x - sigma * prediction;
    return velocity ? scaled : scaled / alpha;
  }
  // What the clean data change with the prediction.
  float slope() const { return velocity ? -sigma : -sigma / alpha; }
};

// The shares of a picture and of noise in latents between two evaluations.
struct NoiseLevel {
  float alpha = 1;
  float sigma = 0;
};

// What a sampler remembers of one element from the evaluations before, and the noise that it adds.
struct SamplerMemory {
  float previous_denoised = 0;  // the clean data that the last evaluation predicted
  float previous_x = 0;         // where it was made
  float older_denoised = 0;     // what the evaluation before that predicted; UnipcUpdate only
  float noise = 0;              // standard normal and new in each evaluation; NoisyUpdate only
};

// How one evaluation of the model moves x. plan.h says which sampler each update belongs to.
struct EulerUpdate {
  float sigma = 1;
  float dt = 0;
  float operator()(float x, float denoised, SamplerMemory&) const {
    return x + dt * ((x - denoised) / sigma);
  }
};

// Euler's step, which also remembers what HeunCorrect needs.
struct HeunPredict {
  float sigma = 1;
  float dt = 0;
  float operator()(float x, float denoised, SamplerMemory& memory) const {
    memory = {.previous_denoised = denoised, .previous_x = x};
    return x + dt * ((x - denoised) / sigma);
  }
};

// Goes from where the step began along the mean of the slopes at its two ends.
struct HeunCorrect {
  float begin_sigma = 1;  // where the step began
  float sigma = 1;        // where it ends
  float dt = 0;
  float operator()(float x, float denoised, SamplerMemory& memory) const {
    const float begin_slope = (memory.previous_x - memory.previous_denoised) / begin_sigma;
    return memory.previous_x + dt * (0.5F * (begin_slope + (x - denoised) / sigma));
  }
};

// `bend` is 0 in a step of first order.
struct Dpmpp2mUpdate {
  float decay = 1;
  float gain = 0;
  float bend = 0;
  float operator()(float x, float denoised, SamplerMemory& memory) const {
    const float change = bend * (denoised - memory.previous_denoised);
    memory.previous_denoised = denoised;
    return decay * x + gain * (denoised + change);
  }
};

// Dpmpp2mUpdate, and noise of this standard deviation.
struct NoisyUpdate {
  Dpmpp2mUpdate mean;
  float deviation = 0;
  float operator()(float x, float denoised, SamplerMemory& memory) const {
    return mean(x, denoised, memory) + deviation * memory.noise;
  }
};

// Where the step begins, as corrected by what the model predicts there: a sum of x, of where the
// step before began, and of the clean data of the last three evaluations.
struct UnipcCorrector {
  float x = 1;
  float previous_x = 0;
  float denoised = 0;
  float previous_denoised = 0;
  float older_denoised = 0;
};

// Corrects x, and goes on from there.
struct UnipcUpdate {
  UnipcCorrector corrector;
  Dpmpp2mUpdate predictor;
  float operator()(float x, float denoised, SamplerMemory& memory) const {
    const float corrected = corrector.x * x + corrector.previous_x * memory.previous_x +
                            corrector.denoised * denoised +
                            corrector.previous_denoised * memory.previous_denoised +
                            corrector.older_denoised * memory.older_denoised;
    memory.older_denoised = memory.previous_denoised;
    memory.previous_x = corrected;
    return predictor(corrected, denoised, memory);
  }
};

struct DdimUpdate {
  float sigma = 1;
  float alpha = 1;
  float next_sigma = 0;
  float next_alpha = 1;
  float operator()(float x, float denoised, SamplerMemory&) const {
    const float epsilon = (x - alpha * denoised) / sigma;
    return next_alpha * denoised + next_sigma * epsilon;
  }
};

using Update = std::variant<EulerUpdate, HeunPredict, HeunCorrect, Dpmpp2mUpdate, NoisyUpdate,
                            UnipcUpdate, DdimUpdate>;

// The `keep` that the op gets for a token whose massive channels may be suppressed by `token_mask`,
// 0 to 1.
inline float keep_value(float ma_keep, float token_mask) {
  return 1.0F - (1.0F - ma_keep) * token_mask;
}

}  // namespace intaglio
