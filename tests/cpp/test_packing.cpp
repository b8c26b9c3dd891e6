#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "pipeline/packing.h"

namespace intaglio {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;

Tensor counted(Shape shape) {
  Tensor tensor(std::move(shape), DType::float32);
  std::iota(tensor.floats().begin(), tensor.floats().end(), 0.0F);
  return tensor;
}

// The result of FluxPipeline._pack_latents for torch.arange(16).reshape(1, 2, 2, 4).
TEST(Packing, EqualsDiffusers) {
  const Tensor packed = pack(counted({1, 2, 2, 4}), 2);
  EXPECT_THAT(packed.shape(), ElementsAre(1, 2, 8));
  EXPECT_THAT(packed.floats(), ElementsAre(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
}

TEST(Packing, UnpackingIsTheInverse) {
  for (const std::int64_t patch : {1, 2, 3}) {
    const Tensor latents = counted({2, 3, 2 * patch, 5 * patch});
    const Tensor packed = pack(latents, patch);
    EXPECT_THAT(packed.shape(), ElementsAre(2, 10, 3 * patch * patch));
    const Tensor unpacked = unpack(packed, 2, 5, patch);
    EXPECT_EQ(unpacked.shape(), latents.shape());
    EXPECT_THAT(unpacked.floats(), ElementsAreArray(latents.floats()));
  }
}

// The result of FluxPipeline._prepare_latent_image_ids(1, 2, 3, ...).
TEST(Packing, PositionsEqualDiffusers) {
  const Tensor positions = token_positions(2, 3);
  EXPECT_THAT(positions.shape(), ElementsAre(6, 3));
  EXPECT_THAT(positions.floats(),
              ElementsAre(0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 1, 0, 0, 1, 1, 0, 1, 2));
}

}  // namespace
}  // namespace intaglio
