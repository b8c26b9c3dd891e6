#include "backend/onnxruntime_providers.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/nvidia_driver.h"
#include "intaglio/error.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

struct Provider {
  const char* name;  // ONNX Runtime's
  const char* needs;
};

const Provider& provider_of(const std::string& device) {
  static const Provider cuda{"CUDAExecutionProvider", "CUDA and cuDNN"};
  static const Provider tensorrt{"TensorrtExecutionProvider", "TensorRT, CUDA and cuDNN"};
  return device == "ort-tensorrt" ? tensorrt : cuda;
}

// The two arrays that ONNX Runtime's C interface takes; they point into the map.
struct Settings {
  using Map = std::map<std::string, std::string>;
  explicit Settings(const Map& map) {
    for (const auto& [key, value] : map) {
      keys.push_back(key.c_str());
      values.push_back(value.c_str());
    }
  }
  std::vector<const char*> keys, values;
};

void add_cuda(Ort::SessionOptions& options) {
  const OrtApi& api = Ort::GetApi();
  OrtCUDAProviderOptionsV2* made = nullptr;
  Ort::ThrowOnError(api.CreateCUDAProviderOptions(&made));
  const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(api.ReleaseCUDAProviderOptions)> cuda(
      made, api.ReleaseCUDAProviderOptions);
  // TensorFloat-32 would round the factors of float32 products to 10 bits.
  const Settings::Map map{{"use_tf32", "0"}};
  const Settings settings(map);
  Ort::ThrowOnError(api.UpdateCUDAProviderOptions(cuda.get(), settings.keys.data(),
                                                  settings.values.data(), settings.keys.size()));
  options.AppendExecutionProvider_CUDA_V2(*cuda);
}

void add_tensorrt(Ort::SessionOptions& options, const fs::path& cache, const std::string& prefix) {
  // Without trt_fp16_enable and its like networks are strongly typed: precision is what the graph
  // says. Without trt_profile_* shapes a profile grows with the sizes and batches that are asked
  // for, and the cache keeps it; fixed ones would refuse what lies outside.
  Settings::Map map;
  if (!cache.empty()) {
    map = {{"trt_engine_cache_enable", "1"},
           {"trt_engine_cache_path", cache.string()},
           {"trt_engine_cache_prefix", prefix},
           {"trt_timing_cache_enable", "1"},
           {"trt_timing_cache_path", cache.string()}};
  }
  const OrtApi& api = Ort::GetApi();
  OrtTensorRTProviderOptionsV2* made = nullptr;
  Ort::ThrowOnError(api.CreateTensorRTProviderOptions(&made));
  const std::unique_ptr<OrtTensorRTProviderOptionsV2, decltype(api.ReleaseTensorRTProviderOptions)>
      tensorrt(made, api.ReleaseTensorRTProviderOptions);
  const Settings settings(map);
  Ort::ThrowOnError(api.UpdateTensorRTProviderOptions(
      tensorrt.get(), settings.keys.data(), settings.values.data(), settings.keys.size()));
  options.AppendExecutionProvider_TensorRT_V2(*tensorrt);
}

// y = Relu(x) on one float, opset 18, as onnx.helper makes it.
constexpr char one_node[] =
    "\x08\x08:3\n\x0c\n\x01x\x12\x01y\"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n"
    "\x02\x08\x01"
    "b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    "B\x04\n\x00\x10\x12";

}  // namespace

Ort::Env& onnxruntime_environment() {
  // It must outlive every session, so it is never destroyed. Its errors reach people as exceptions:
  // logged as well, they would be a second message.
  static auto* env = new Ort::Env(ORT_LOGGING_LEVEL_FATAL, "intaglio");
  return *env;
}

void register_ops(const fs::path& ops_library) {
  static std::once_flag once;
  std::call_once(once, [&] {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    options.RegisterCustomOpsLibrary(ops_library.c_str(), {});
    Ort::Session(onnxruntime_environment(), one_node, sizeof(one_node) - 1, options);
  });
}

bool has_provider(const std::string& device) {
  return std::ranges::count(Ort::GetAvailableProviders(), provider_of(device).name) > 0;
}

void check_provider(const std::string& device, const OnnxRuntimeLibrary& library) {
  const Provider& provider = provider_of(device);
  const auto refuse = [&](const std::string& why) {
    throw UnavailableError("device " + device + " does not work here: " + why);
  };
  if (!has_provider(device)) {
    refuse("ONNX Runtime " + library.version + " (" + library.path.string() + ") has no " +
           provider.name +
           "; install onnxruntime-gpu in place of onnxruntime, or give its library with "
           "--onnxruntime");
  }
  if (!why_no_gpu().empty())
    refuse(why_no_gpu() + "; see that nvidia-smi lists a GPU, or use --device cpu");
  try {
    Ort::SessionOptions options;
    add_provider(options, device, {}, "");
    Ort::Session(onnxruntime_environment(), one_node, sizeof(one_node) - 1, options);
  } catch (const Ort::Exception& error) {
    std::string what = error.what();
    while (what.ends_with('\n')) what.pop_back();
    const std::string before = "with error: ";  // of the loader
    const std::size_t found = what.find(before);
    if (found == std::string::npos) refuse("ONNX Runtime says: " + what + "; use --device cpu");
    refuse("ONNX Runtime's provider cannot be loaded (" + what.substr(found + before.size()) +
           "); install " + provider.needs +
           " where the loader finds them, in the version that it asks for, or use --device cpu");
  }
}

void add_provider(Ort::SessionOptions& options, const std::string& device, const fs::path& cache,
                  const std::string& graph) {
  onnxruntime_environment();  // loading a provider logs, and the log is the environment's
  if (device == "ort-tensorrt") {
    std::string prefix = graph;
    std::ranges::replace(prefix, '/', '-');
    add_tensorrt(options, cache, prefix);
  }
  add_cuda(options);  // for ort-tensorrt: what TensorRT leaves
}

}  // namespace intaglio
