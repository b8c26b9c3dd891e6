#include "intaglio/rng.h"

#include <cmath>
#include <numbers>
#include <string>

#include "intaglio/error.h"

namespace intaglio {
namespace {

// torch fills tensors in blocks of this size, and draws shorter tensors value by value.
constexpr std::size_t kBlock = 16;

// Takes the low 24 bits, as torch's uniform_real_distribution<float> does.
float uniform_float(std::mt19937& engine) {
  constexpr std::uint32_t mask = (1U << 24) - 1;
  constexpr float scale = 1.0F / static_cast<float>(1U << 24);
  return static_cast<float>(static_cast<std::uint32_t>(engine()) & mask) * scale;
}

// Applies the Box-Muller transform in place; values j and j + 8 are a pair.
void to_normal(std::span<float, kBlock> block) {
  for (std::size_t j = 0; j < kBlock / 2; ++j) {
    const float radius = std::sqrt(-2.0F * std::log(1.0F - block[j]));
    const float theta = 2.0F * std::numbers::pi_v<float> * block[j + kBlock / 2];
    block[j] = radius * std::cos(theta);
    block[j + kBlock / 2] = radius * std::sin(theta);
  }
}

}  // namespace

// torch uses only the low 32 bits of a seed.
Generator::Generator(std::uint64_t seed) : engine_(static_cast<std::uint32_t>(seed)) {}

double Generator::uniform_double() {
  const auto high = static_cast<std::uint64_t>(engine_());
  const auto low = static_cast<std::uint64_t>(engine_());
  constexpr std::uint64_t mask = (std::uint64_t{1} << 53) - 1;
  constexpr double scale = 1.0 / static_cast<double>(std::uint64_t{1} << 53);
  return static_cast<double>(((high << 32) | low) & mask) * scale;
}

double Generator::normal_double() {
  if (has_next_normal_) {
    has_next_normal_ = false;
    return next_normal_;
  }
  const double u1 = uniform_double();
  const double u2 = uniform_double();
  const double radius = std::sqrt(-2.0 * std::log1p(-u2));
  const double theta = 2.0 * std::numbers::pi * u1;
  next_normal_ = radius * std::sin(theta);
  has_next_normal_ = true;
  return radius * std::cos(theta);
}

void Generator::randn(std::span<float> out) {
  if (out.size() < kBlock) {
    for (float& value : out) value = static_cast<float>(normal_double());
    return;
  }
  for (float& value : out) value = uniform_float(engine_);
  const std::size_t whole = out.size() - out.size() % kBlock;
  for (std::size_t i = 0; i < whole; i += kBlock) {
    to_normal(out.subspan(i).first<kBlock>());
  }
  if (whole == out.size()) return;
  // As in torch, the values after the last whole block come from a new block that ends where `out`
  // ends and so overwrites a part of the block before it.
  const auto tail = out.last<kBlock>();
  for (float& value : tail) value = uniform_float(engine_);
  to_normal(tail);
}

BatchNoise::BatchNoise(const std::vector<std::uint64_t>& seeds)
    : generators_(seeds.begin(), seeds.end()) {}

void BatchNoise::draw(Tensor noise) {
  const Shape& shape = noise.shape();
  const auto batch = shape.empty() ? std::size_t{1} : static_cast<std::size_t>(shape.front());
  const auto values = noise.floats();
  if (generators_.size() == 1) {
    generators_.front().randn(values);
    return;
  }
  if (generators_.size() != batch) {
    throw UsageError(std::to_string(generators_.size()) + " seeds for " + std::to_string(batch) +
                     " images: give one seed for the whole batch, or one for each image");
  }
  const std::size_t image = batch == 0 ? 0 : values.size() / batch;
  for (std::size_t i = 0; i < batch; ++i) generators_[i].randn(values.subspan(i * image, image));
}

Tensor draw_noise(const Shape& shape, const std::vector<std::uint64_t>& seeds) {
  Tensor noise(shape, DType::float32);
  BatchNoise(seeds).draw(noise);
  return noise;
}

}  // namespace intaglio
