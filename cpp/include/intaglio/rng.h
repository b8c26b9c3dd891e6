// Noise equal to torch's CPU generator.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "intaglio/tensor.h"

namespace intaglio {

// torch.Generator("cpu").manual_seed(seed): a Mersenne Twister, whose words become normal values as
// in torch.
class Generator {
 public:
  explicit Generator(std::uint64_t seed);

  // Fills `out` as torch.randn(out.size(), generator=self) does in float32, to 1e-5.
  void randn(std::span<float> out);

 private:
  double uniform_double();
  double normal_double();

  std::mt19937 engine_;
  bool has_next_normal_ = false;
  double next_normal_ = 0.0;
};

// Draws noise of `shape` = [N, ...] as diffusers does: one seed draws the whole batch, and N seeds
// draw one image each. Throws UsageError for another number of seeds.
Tensor draw_noise(const Shape& shape, const std::vector<std::uint64_t>& seeds);

}  // namespace intaglio
