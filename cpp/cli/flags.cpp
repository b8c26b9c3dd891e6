#include "cli/flags.h"

#include "cli/console.h"
#include "cli/progress.h"

namespace intaglio::cli {

namespace {

constexpr const char* kDeviceGroup = "Device";

}  // namespace

CLI::Option* add_path(CLI::App& command, const std::string& name, std::filesystem::path& path,
                      const std::string& help) {
  const auto read = [&path](const std::string& text) {
    path = std::u8string(text.begin(), text.end());
  };
  return command.add_option_function<std::string>(name, read, help);
}

CLI::Option* add_paths(CLI::App& command, const std::string& name,
                       std::vector<std::filesystem::path>& paths, const std::string& help) {
  const auto read = [&paths](const std::vector<std::string>& texts) {
    for (const std::string& text : texts)
      paths.emplace_back(std::u8string(text.begin(), text.end()));
  };
  return command.add_option_function<std::vector<std::string>>(name, read, help)
      ->allow_extra_args(false);
}

void add_bundle(CLI::App& command, std::filesystem::path& bundle) {
  add_path(command, "bundle", bundle, "the folder that `intaglio export` wrote")
      ->required()
      ->type_name("BUNDLE");
}

void add_library_flags(CLI::App& command, BackendOptions& backend) {
  add_path(command, "--onnxruntime", backend.onnxruntime_library,
           "path of ONNX Runtime's library, when it is not found automatically")
      ->type_name("LIBRARY")
      ->group(kDeviceGroup);
  add_path(command, "--provider-library", backend.provider_library,
           "path of the library of an execution provider's plugin (OpenVINO, TensorRT-RTX or "
           "WebGPU), when it is not found automatically")
      ->type_name("LIBRARY")
      ->group(kDeviceGroup);
}

void add_run_flags(CLI::App& command, RunFlags& flags) {
  add_flag(command, "--device", flags.backend.device, "NAME",
           "where to run: cpu, openvino[:cpu|gpu|npu] (:cpu if not given), cuda, tensorrt, "
           "tensorrt-rtx, webgpu, or "
           "auto, which takes the best that works; `intaglio devices` lists what works here, and "
           "cuda:1 is the second card [auto]")
      ->group(kDeviceGroup);
  add_flag(command, "--precision", flags.backend.precision, "TYPE",
           "what the device computes in, where it can compute in another type than the graph "
           "(OpenVINO): float32, bfloat16 or float16, or in short fp32, bf16, fp16; an NPU has "
           "float16 only [float32]")
      ->group(kDeviceGroup);
  add_flag(command, "--max-memory", flags.backend.max_memory, "SIZE",
           "most memory that a run may take on the device: 8GB, 7.5GiB, 900MB, or auto for what is "
           "free; if the model does not fit, its parts are loaded one after the other, a batch "
           "that does not fit is drawn in groups of images, and "
           "`intaglio inspect BUNDLE --plan` shows what that takes; all if not given")
      ->group(kDeviceGroup);
  add_flag(command, "--threads", flags.backend.threads, "N",
           "number of CPU threads; 0 means as many as the process may use [0]")
      ->group(kDeviceGroup);
  add_library_flags(command, flags.backend);
  add_bundle(command, flags.bundle);
}

void add_loop_flags(CLI::App& command, RunFlags& flags) {
  add_run_flags(command, flags);
  command
      .add_flag("--prepack", flags.backend.prepack,
                "on the CPU, pack the weights for ONNX Runtime's kernels once at the start instead "
                "of in every step: a float32 step takes 5 to 10 % less time, but the start takes "
                "longer and processes do not share the memory of the weights")
      ->group(kDeviceGroup);
}

Pipeline open_pipeline(const RunFlags& flags) {
  Pipeline pipeline = Pipeline::open(flags.bundle, flags.backend);
  print_notes(opening_notes(pipeline));
  return pipeline;
}

std::vector<std::string> opening_notes(const Pipeline& pipeline) {
  const DeviceChoice& choice = pipeline.backend().choice;
  std::vector<std::string> notes;
  if (!choice.note.empty())
    notes.push_back("running on " + choice.device + " because " + choice.note);
  if (!choice.compiling.empty()) notes.push_back(choice.compiling);
  return notes;
}

void compile(const Pipeline& pipeline) {
  if (pipeline.backend().choice.compiling.empty()) return;
  ProgressBar bar("compiling", "parts");
  pipeline.load([&](int stage, int stages) {
    bar.show(stage, stages);
    return true;
  });
}

}  // namespace intaglio::cli
