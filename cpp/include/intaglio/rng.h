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

// The noise of a batch as diffusers draws it: one seed draws the whole batch, and N seeds draw one
// image each.
class BatchNoise {
 public:
  explicit BatchNoise(const std::vector<std::uint64_t>& seeds);
  // Fills `noise`, [N, ...] float32, with what comes next. Throws UsageError for another number of
  // images than seeds.
  void draw(Tensor noise);

 private:
  std::vector<Generator> generators_;
};

// Returns the first noise of `shape` = [N, ...] that BatchNoise draws.
Tensor draw_noise(const Shape& shape, const std::vector<std::uint64_t>& seeds);

}  // namespace intaglio
