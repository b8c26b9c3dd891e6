// The loop's arithmetic as CUDA kernels, put on a stream; core/arithmetic.h has the arithmetic.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/guided_step.h"

namespace intaglio {

// One kernel for the whole step; its tensors are in device memory.
void launch_step(const GuidedStep& step, cudaStream_t stream);
void launch_fill(float* to, std::int64_t size, float value, cudaStream_t stream);
// rows [n, tokens], suppression [tokens]
void launch_fill_keep(float* rows, std::int64_t n, const float* suppression, std::int64_t tokens,
                      float keep, cudaStream_t stream);

}  // namespace intaglio
