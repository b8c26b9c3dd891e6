// The stream of backends that run on a GPU: latents, predictions and the sampler's memory stay
// there.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "intaglio/backend.h"

namespace intaglio {

class CudaStream final : public Stream {
 public:
  CudaStream();
  Tensor allocate(const Shape& shape, DType dtype) override;
  void copy(const Tensor& from, Tensor to) override;
  void fill(Tensor to, float value) override;
  void fill_keep(Tensor rows, const Tensor& suppression, float keep) override;
  void step(const GuidedStep& step) override;
  void wait() override;

  // Memory of the GPU that is given back, in the stream's order, with the last copy of the pointer.
  // Throws OutOfMemoryError saying what `what` needs and what is free.
  std::shared_ptr<void> allocate_bytes(std::size_t bytes, const std::string& what);
  // Memory for whatever runs now: what runs next on this stream gets the same, or a larger block.
  std::shared_ptr<void> scratch(std::size_t bytes, const std::string& what);
  cudaStream_t get() const { return stream_.get(); }

 private:
  // Kept by what is allocated on it, for longer than this object if need be.
  std::shared_ptr<CUstream_st> stream_;
  bool pools_ = false;  // the GPU has memory pools
  std::shared_ptr<void> scratch_;
  std::size_t scratch_bytes_ = 0;
};

}  // namespace intaglio
