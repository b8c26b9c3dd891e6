// The loop's arithmetic, element by element and in float32.
#pragma once

#include <cstddef>
#include <variant>

namespace intaglio {

// A branch's last two differences from D_c, kept for steps that do not run it; null where none do.
struct KeptDelta {
  float* newer = nullptr;
  float* older = nullptr;
};

// How a branch's difference from D_c comes about: from its prediction, or on the line through the
// two that are kept.
struct Delta {
  bool reused = false;
  float slope = 0;  // distance from the newer, by that between the two; 0 takes the newer

  float operator()(float conditional, const float* branch,
                                        const KeptDelta& kept, std::size_t i) const {
    if (reused) return kept.newer[i] + slope * (kept.newer[i] - kept.older[i]);
    const float delta = conditional - branch[i];
    if (kept.newer) {
      kept.older[i] = kept.newer[i];
      kept.newer[i] = delta;
    }
    return delta;
  }
};

// D = D_c + lambda (D_c - D_0) + w (D_c - D_m), arXiv 2510.11538. Both differences are taken from
// D_c, and the sum runs from left to right. A branch that did not run is not read.
struct Combine {
  float lambda = 0;
  float w = 0;
  bool has_unconditional = false;
  bool has_degraded = false;
  Delta unconditional_delta;
  Delta degraded_delta;

  float operator()(const float* conditional, const float* unconditional,
                                        const float* degraded, std::size_t i,
                                        const KeptDelta& kept_unconditional = {},
                                        const KeptDelta& kept_degraded = {}) const {
    const float c = conditional[i];
    float guided = c;
    if (has_unconditional)
      guided = guided + lambda * unconditional_delta(c, unconditional, kept_unconditional, i);
    if (has_degraded) guided = guided + w * degraded_delta(c, degraded, kept_degraded, i);
    return guided;
  }
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
};

// What a sampler keeps of one element between its evaluations; each gives the two its own meaning.
struct SamplerMemory {
  float first = 0;
  float second = 0;
};

// How one evaluation of the model moves x (see plan.h for whose updates they are).
struct EulerUpdate {
  float sigma = 1;
  float dt = 0;
  float operator()(float x, float denoised, SamplerMemory&) const {
    return x + dt * ((x - denoised) / sigma);
  }
};

// Euler's step, and what HeunCorrect needs of it: the slope, and where the step began.
struct HeunPredict {
  float sigma = 1;
  float dt = 0;
  float operator()(float x, float denoised, SamplerMemory& memory) const {
    memory.first = (x - denoised) / sigma;
    memory.second = x;
    return x + dt * memory.first;
  }
};

// From where the step began, along the mean of the slopes at both of its ends.
struct HeunCorrect {
  float sigma = 1;  // at the end
  float dt = 0;
  float operator()(float x, float denoised, SamplerMemory& memory) const {
    return memory.second + dt * (0.5F * (memory.first + (x - denoised) / sigma));
  }
};

// bend is 0 in a step of first order, and the memory the last evaluation's clean data.
struct Dpmpp2mUpdate {
  float decay = 1;
  float gain = 0;
  float bend = 0;
  float operator()(float x, float denoised, SamplerMemory& memory) const {
    const float change = bend * (denoised - memory.first);
    memory.first = denoised;
    return decay * x + gain * (denoised + change);
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

using Update = std::variant<EulerUpdate, HeunPredict, HeunCorrect, Dpmpp2mUpdate, DdimUpdate>;

// keep of a token whose massive channels may be suppressed by `suppression`, 0 to 1.
inline float keep_value(float keep, float suppression) {
  return 1.0F - (1.0F - keep) * suppression;
}

}  // namespace intaglio
