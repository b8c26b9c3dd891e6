// Eight requests that join one batch, each with its own guidance, steps and seed. Prints the
// seconds and the largest relative difference from the same requests alone.
//   mixed_batch BUNDLE DEVICE LIBRARY
#include <intaglio/intaglio.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <vector>

namespace {

using intaglio::GenerateOptions;

std::vector<GenerateOptions> requests() {
  std::vector<GenerateOptions> all(8);
  for (int i = 0; i < 8; ++i) {
    all[i].prompt = "a dark ankle boot";
    all[i].seeds = {static_cast<std::uint64_t>(i)};
    all[i].steps = 4 + i % 3;
    all[i].cfg_scale = i % 2 ? 3.0 : 1.0;
    all[i].dg_scale = i % 4 > 1 ? 1.5 : 0.0;
  }
  return all;
}

double relative(const intaglio::Tensor& got, const intaglio::Tensor& want) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < want.floats().size(); ++i) {
    const double expected = want.floats()[i];
    difference += std::pow(got.floats()[i] - expected, 2);
    size += expected * expected;
  }
  return std::sqrt(difference / size);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 4) return 2;
  intaglio::BackendOptions backend;
  backend.device = argv[2];
  backend.onnxruntime_library = argv[3];
  const auto pipeline = intaglio::Pipeline::open(argv[1], backend);
  const auto all = requests();
  double seconds = 0, error = 0;
  for (int round = 0; round < 2; ++round) {  // the first one compiles and is not measured
    intaglio::Batch batch(pipeline, 8);
    std::map<std::int64_t, std::size_t> index;
    const auto began = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < all.size(); ++i) index[batch.add(all[i])] = i;
    std::map<std::size_t, intaglio::Tensor> drawn;
    while (batch.size())
      for (const auto& step : batch.step())
        if (step.done) drawn.emplace(index.at(step.id), step.finish().latents);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    for (std::size_t i = 0; round && i < all.size(); ++i)
      error = std::max(error, relative(drawn.at(i), pipeline.generate(all[i]).latents));
  }
  std::printf("8 images, mixed guidance and steps: %.3f s, %.2e from each alone\n", seconds, error);
  return error < 1e-4 ? 0 : 1;
} catch (const intaglio::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return static_cast<int>(error.code());
}
