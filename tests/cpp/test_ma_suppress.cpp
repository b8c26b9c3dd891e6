// Compares the reference implementation of MASuppress with golden tensors of torch and with
// SPEC.md.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "intaglio/file.h"
#include "intaglio/tensor.h"
#include "ops/ma_suppress.h"

namespace intaglio::ops {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::uint32_t bits(float value) { return std::bit_cast<std::uint32_t>(value); }

struct Case {
  std::size_t rows, tokens, channels;
  std::vector<float> hidden, mask, ref;
  std::vector<std::int64_t> branch;
  std::vector<float> keep;
  std::vector<std::int64_t> source = {};

  std::vector<float> run() const {
    std::vector<float> output(keep.size() * channels, 12345.0F);
    ma_suppress({hidden, mask, ref, branch, keep, source, rows, tokens}, output);
    return output;
  }
};

// Makes a case with sizes around the vector width, F smaller than, equal to or larger than B, and
// unusual values such as NaN.
Case random_case(std::mt19937& random) {
  const auto size = [&](int limit) {
    return std::uniform_int_distribution<std::size_t>(1, limit)(random);
  };
  std::normal_distribution<float> normal;
  Case made{size(4), size(9), size(37), {}, {}, {}, {}, {}};
  made.branch.resize(size(7));
  for (auto& row : made.branch) row = static_cast<std::int64_t>(random() % made.rows);
  made.hidden.resize(made.rows * made.tokens * made.channels);
  const float odd[] = {kNan, kInfinity, -kInfinity, -0.0F,
                       std::numeric_limits<float>::denorm_min()};
  for (float& x : made.hidden) x = random() % 10 == 0 ? odd[random() % 5] : normal(random) * 100.0F;
  made.mask.resize(made.channels);
  for (float& x : made.mask) x = static_cast<float>(random() % 2);
  made.ref.resize(made.channels);
  for (float& x : made.ref) x = normal(random);
  const float levels[] = {0.0F, 1.0F, 0.3F, std::abs(normal(random))};
  made.keep.resize(made.branch.size() * made.tokens);
  for (float& x : made.keep) x = levels[random() % 4];
  if (random() % 2) {
    made.source.resize(made.keep.size());
    for (auto& token : made.source)
      token = static_cast<std::int64_t>(random() % (made.rows * made.tokens + 1));
  }
  return made;
}

// Computes an element by the formula in SPEC.md. volatile makes the compiler round each operation.
float expected(const Case& given, std::size_t f, std::size_t t, std::size_t c) {
  const auto row = static_cast<std::size_t>(given.branch[f]);
  const float x = given.hidden[(row * given.tokens + t) * given.channels + c];
  const volatile float strength = 1.0F - given.keep[f * given.tokens + t];
  const volatile float a = given.mask[c] * strength;
  if (a == 0.0F) return x;
  const volatile float kept = 1.0F - a;
  const volatile float first = kept * x;
  const std::int64_t source = given.source.empty() ? 0 : given.source[f * given.tokens + t];
  const float target =
      source == 0 ? given.ref[c]
                  : given.hidden[static_cast<std::size_t>(source - 1) * given.channels + c];
  const volatile float second = a * target;
  return first + second;
}

std::vector<float> floats(const std::string& name) {
  const Tensor tensor = load_npy(std::filesystem::path(INTAGLIO_TEST_DATA) / "ma_suppress" / name);
  return {tensor.floats().begin(), tensor.floats().end()};
}

// The file ends with `count` int64 values.
std::vector<std::int64_t> int64s(const std::string& name, std::size_t count) {
  const std::string file =
      read_file(std::filesystem::path(INTAGLIO_TEST_DATA) / "ma_suppress" / name);
  std::vector<std::int64_t> values(count);
  const std::size_t bytes = count * sizeof(std::int64_t);
  std::memcpy(values.data(), file.data() + file.size() - bytes, bytes);
  return values;
}

TEST(MASuppress, EqualsTorch) {
  const Case golden{3,
                    5,
                    8,
                    floats("hidden.npy"),
                    floats("mask.npy"),
                    floats("ref.npy"),
                    int64s("branch.npy", 11),
                    floats("keep.npy"),
                    int64s("source.npy", 55)};
  const std::vector<float> output = golden.run(), torch = floats("output.npy");
  ASSERT_EQ(output.size(), torch.size());
  for (std::size_t i = 0; i < torch.size(); ++i) EXPECT_EQ(bits(output[i]), bits(torch[i])) << i;
}

TEST(MASuppress, FollowsTheSpecification) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    const Case given = random_case(random);
    const std::vector<float> output = given.run();
    for (std::size_t i = 0; i < output.size(); ++i) {
      const std::size_t token = i / given.channels;
      const float want =
          expected(given, token / given.tokens, token % given.tokens, i % given.channels);
      ASSERT_TRUE(bits(output[i]) == bits(want) || (std::isnan(output[i]) && std::isnan(want)))
          << "round " << round << ", element " << i << ": " << output[i] << " instead of " << want;
    }
  }
}

TEST(MASuppress, KeepsEveryBitWhereNothingIsSuppressed) {
  std::mt19937 random(8);
  for (int round = 0; round < 100; ++round) {
    Case given = random_case(random);
    if (round % 2) {
      std::ranges::fill(given.keep, 1.0F);
    } else {
      std::ranges::fill(given.mask, 0.0F);
    }
    std::ranges::fill(given.ref, round % 3 ? kInfinity : kNan);
    for (float& x : given.hidden) {  // includes signalling NaNs and NaNs with payloads
      if (random() % 4 == 0)
        x = std::bit_cast<float>(static_cast<std::uint32_t>(0x7f800001U + random() % 0x7ffffeU));
    }
    const std::vector<float> output = given.run();
    const std::size_t row = given.tokens * given.channels;
    for (std::size_t f = 0; f < given.branch.size(); ++f) {
      const float* from = given.hidden.data() + static_cast<std::size_t>(given.branch[f]) * row;
      ASSERT_EQ(std::memcmp(output.data() + f * row, from, row * sizeof(float)), 0) << round;
    }
  }
}

TEST(MASuppress, PermutedBranchesPermuteRows) {
  std::mt19937 random(9);
  for (int round = 0; round < 50; ++round) {
    const Case given = random_case(random);
    Case reversed = given;
    std::ranges::reverse(reversed.branch);
    const std::size_t row = given.tokens * given.channels, count = given.branch.size();
    for (std::size_t f = 0; f < count; ++f) {
      std::copy_n(
          given.keep.begin() + static_cast<std::ptrdiff_t>(f * given.tokens), given.tokens,
          reversed.keep.begin() + static_cast<std::ptrdiff_t>((count - 1 - f) * given.tokens));
      if (given.source.empty()) continue;
      std::copy_n(
          given.source.begin() + static_cast<std::ptrdiff_t>(f * given.tokens), given.tokens,
          reversed.source.begin() + static_cast<std::ptrdiff_t>((count - 1 - f) * given.tokens));
    }
    const std::vector<float> one = given.run(), other = reversed.run();
    for (std::size_t f = 0; f < count; ++f) {
      ASSERT_EQ(std::memcmp(&one[f * row], &other[(count - 1 - f) * row], row * sizeof(float)), 0);
    }
  }
}

TEST(MASuppress, FullSuppressionIsTheReference) {
  const Case given{1, 1, 3, {500.0F, -2.0F, 7.0F}, {1, 0, 1}, {0.0F, 9.0F, -1.5F}, {0}, {0.0F}};
  EXPECT_THAT(given.run(), testing::ElementsAre(0.0F, -2.0F, -1.5F));
}

TEST(MASuppress, TokensCanBeComputedInParts) {
  std::mt19937 random(10);
  for (int round = 0; round < 50; ++round) {
    const Case given = random_case(random);
    const std::vector<float> whole = given.run();
    std::vector<float> parts(whole.size());
    const std::size_t middle = random() % (given.keep.size() + 1);
    const MASuppressInputs inputs{given.hidden, given.mask,   given.ref,  given.branch,
                                  given.keep,   given.source, given.rows, given.tokens};
    ma_suppress_tokens(inputs, parts, middle, given.keep.size());
    ma_suppress_tokens(inputs, parts, 0, middle);
    ASSERT_EQ(std::memcmp(whole.data(), parts.data(), whole.size() * sizeof(float)), 0);
  }
}

TEST(MASuppress, RefusesRowsOutsideHidden) {
  Case given{2, 1, 1, {1, 2}, {1}, {0}, {0, 1, 1}, {1, 1, 1}};
  for (const std::int64_t wrong :
       {std::int64_t{2}, std::int64_t{-1}, std::numeric_limits<std::int64_t>::min()}) {
    given.branch[2] = wrong;
    try {
      given.run();
      ADD_FAILURE() << wrong;
    } catch (const std::out_of_range& error) {
      EXPECT_EQ(error.what(), "branch[2] is " + std::to_string(wrong) + ", but hidden has 2 rows");
    }
  }
}

TEST(MASuppress, RefusesTokensOutsideHidden) {
  Case given{2, 1, 1, {1, 2}, {1}, {0}, {0, 1}, {0, 0}, {0, 2}};
  given.run();
  for (const std::int64_t wrong : {std::int64_t{3}, std::int64_t{-1}}) {
    given.source[1] = wrong;
    EXPECT_THROW(given.run(), std::out_of_range) << wrong;
  }
}

}  // namespace
}  // namespace intaglio::ops
