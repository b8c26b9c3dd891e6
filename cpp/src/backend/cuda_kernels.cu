#include <variant>

#include "backend/cuda_kernels.h"

namespace intaglio {

namespace {

constexpr unsigned kThreads = 256;

unsigned blocks_for(std::int64_t size) {
  return static_cast<unsigned>((size + kThreads - 1) / kThreads);
}

// A launch covers every element once; 2^31 blocks are more than any latent has.
__device__ std::int64_t element() {
  return static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

template <typename AnyUpdate>
__global__ void step_kernel(StepElements elements, Combine combine, ToDenoised to_denoised,
                            AnyUpdate update, std::int64_t size) {
  const std::int64_t i = element();
  if (i < size) {
    guided_element(elements, combine, to_denoised, update, static_cast<std::size_t>(i));
  }
}

__global__ void fill_kernel(float* to, std::int64_t size, float value) {
  const std::int64_t i = element();
  if (i < size) to[i] = value;
}

__global__ void fill_keep_kernel(float* rows, std::int64_t size, const float* suppression,
                                 std::int64_t tokens, float keep) {
  const std::int64_t i = element();
  if (i < size) rows[i] = keep_value(keep, suppression[i % tokens]);
}

}  // namespace

void launch_step(const GuidedStep& step, cudaStream_t stream) {
  const StepElements elements = elements_of(step);
  const std::int64_t size = step.x.size();
  if (size == 0) return;
  std::visit(
      [&](const auto& update) {
        step_kernel<<<blocks_for(size), kThreads, 0, stream>>>(elements, step.combine,
                                                               step.to_denoised, update, size);
      },
      step.update);
}

void launch_fill(float* to, std::int64_t size, float value, cudaStream_t stream) {
  if (size > 0) fill_kernel<<<blocks_for(size), kThreads, 0, stream>>>(to, size, value);
}

void launch_fill_keep(float* rows, std::int64_t n, const float* suppression, std::int64_t tokens,
                      float keep, cudaStream_t stream) {
  const std::int64_t size = n * tokens;
  if (size == 0) return;
  fill_keep_kernel<<<blocks_for(size), kThreads, 0, stream>>>(rows, size, suppression, tokens,
                                                              keep);
}

}  // namespace intaglio
