// Draws one image from a bundle. Usage: generate BUNDLE PROMPT OUT.png [ONNXRUNTIME_LIBRARY]
// generate.py is the same program in Python.
#include <intaglio/intaglio.h>

#include <cstdio>

int main(int argc, char** argv) {
  if (argc < 4) return static_cast<int>(intaglio::ExitCode::usage);
  try {
    intaglio::BackendOptions backend;
    if (argc > 4) backend.onnxruntime_library = argv[4];
    const auto pipeline = intaglio::Pipeline::open(argv[1], backend);

    intaglio::GenerateOptions options;
    options.prompt = argv[2];
    options.seeds = {7};
    options.steps = 4;
    options.dg_scale = 0.5;
    const auto on_step = [](const intaglio::Step& step) {
      std::printf("step %d of %d, sigma %.4f\n", step.step + 1, step.steps, step.sigma);
      return true;  // to go on; false stops the run
    };
    const auto result = pipeline.generate(options, on_step);
    intaglio::write_png(argv[3], result.images[0], result.texts[0]);
  } catch (const intaglio::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
