// A stream for backends whose graphs read and write host memory.
#pragma once

#include "intaglio/backend.h"

namespace intaglio {

class HostStream final : public Stream {
 public:
  Tensor allocate(const Shape& shape, DType dtype) override;
  void copy(const Tensor& from, Tensor to) override;
  void fill(Tensor to, float value) override;
  void fill_keep(Tensor rows, const Tensor& token_mask, float ma_keep) override;
  void step(const GuidedStep& step) override;
  void wait() override {}
};

}  // namespace intaglio
