#include <gtest/gtest.h>

#include "golden.h"
#include "intaglio/error.h"
#include "intaglio/rng.h"

namespace intaglio {
namespace {

constexpr double kTolerance = 1e-5;

// Long and short draws of 1 to 40 values alternate, which covers whole blocks, the tail after them,
// and the cached second normal value.
TEST(Generator, DrawsAsTorchDoes) {
  for (const auto& stream : golden_json("noise.json")) {
    Generator generator(stream["seed"].get<std::uint64_t>());
    for (const auto& draw : stream["draws"]) {
      const auto expected = draw.get<std::vector<float>>();
      std::vector<float> values(expected.size());
      generator.randn(values);
      ASSERT_LE(largest_difference(values, expected), kTolerance)
          << "seed " << stream["seed"] << ", " << expected.size() << " values";
    }
  }
}

TEST(Generator, AnEmptyDrawKeepsTheState) {
  Generator one(3), other(3);
  std::vector<float> nothing, a(5), b(5);
  one.randn(nothing);
  one.randn(a);
  other.randn(b);
  EXPECT_EQ(a, b);
}

TEST(DrawNoise, OneSeedDrawsTheBatch) {
  const Tensor expected = load_npy(golden_path("noise_batch.npy"));
  const Tensor noise = draw_noise({3, 4, 16, 16}, {1234});
  const auto values = expected.floats();
  EXPECT_EQ(noise.shape(), expected.shape());
  EXPECT_LE(largest_difference(noise.floats(), {values.begin(), values.end()}), kTolerance);
}

TEST(DrawNoise, EachSeedDrawsOneImage) {
  const Tensor expected = load_npy(golden_path("noise_each.npy"));
  const auto values = expected.floats();
  const Tensor noise = draw_noise({2, 4, 8, 8}, {5, 6});
  EXPECT_LE(largest_difference(noise.floats(), {values.begin(), values.end()}), kTolerance);
}

TEST(DrawNoise, SeedsMustMatchImages) {
  EXPECT_THROW(draw_noise({2, 4, 8, 8}, {1, 2, 3}), UsageError);
  EXPECT_THROW(draw_noise({2, 4, 8, 8}, {}), UsageError);
}

}  // namespace
}  // namespace intaglio
