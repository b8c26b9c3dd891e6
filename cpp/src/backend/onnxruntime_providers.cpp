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
  const char* name;       // in ONNX Runtime
  const char* libraries;  // that it needs, as a part of a message
};

const Provider& provider_of(const std::string& device) {
  static const Provider cuda{"CUDAExecutionProvider", "CUDA and cuDNN"};
  static const Provider tensorrt{"TensorrtExecutionProvider", "TensorRT, CUDA and cuDNN"};
  return device == "ort-tensorrt" ? tensorrt : cuda;
}

// The keys and the values of a map as the two arrays that ONNX Runtime's C interface takes. They
// point into the map.
struct ProviderOptions {
  using Map = std::map<std::string, std::string>;
  explicit ProviderOptions(const Map& map) {
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
  // TensorFloat-32 would round the inputs of a float32 matmul to 10 bits of mantissa.
  const ProviderOptions::Map map{{"use_tf32", "0"}};
  const ProviderOptions cuda_options(map);
  Ort::ThrowOnError(api.UpdateCUDAProviderOptions(
      cuda.get(), cuda_options.keys.data(), cuda_options.values.data(), cuda_options.keys.size()));
  options.AppendExecutionProvider_CUDA_V2(*cuda);
}

void add_tensorrt(Ort::SessionOptions& options, const fs::path& cache, const std::string& prefix) {
  // Options such as trt_fp16_enable are left out, so TensorRT computes in the types of the graph.
  // Fixed shapes (trt_profile_*) are left out too, because they would refuse other sizes and
  // batches; without them a profile grows with the requests, and the cache keeps it.
  ProviderOptions::Map map;
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
  const ProviderOptions tensorrt_options(map);
  Ort::ThrowOnError(api.UpdateTensorRTProviderOptions(tensorrt.get(), tensorrt_options.keys.data(),
                                                      tensorrt_options.values.data(),
                                                      tensorrt_options.keys.size()));
  options.AppendExecutionProvider_TensorRT_V2(*tensorrt);
}

// An ONNX model that computes y = Relu(x) on one float, opset 18, serialised by onnx.helper.
constexpr char kReluModel[] =
    "\x08\x08:3\n\x0c\n\x01x\x12\x01y\"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n"
    "\x02\x08\x01"
    "b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    "B\x04\n\x00\x10\x12";

}  // namespace

Ort::Env& onnxruntime_environment() {
  // The environment must outlive every session, so it is never destroyed. It logs fatal errors
  // only, because other errors reach the user as exceptions and would be printed twice.
  static auto* env = new Ort::Env(ORT_LOGGING_LEVEL_FATAL, "intaglio");
  return *env;
}

void register_ops(const fs::path& ops_library) {
  static std::once_flag once;
  std::call_once(once, [&] {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    options.RegisterCustomOpsLibrary(ops_library.c_str(), {});
    Ort::Session(onnxruntime_environment(), kReluModel, sizeof(kReluModel) - 1, options);
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
  if (!gpu_unavailable_reason().empty())
    refuse(gpu_unavailable_reason() + "; check that nvidia-smi lists a GPU, or use --device cpu");
  try {
    Ort::SessionOptions options;
    add_provider(options, device, {}, "");
    Ort::Session(onnxruntime_environment(), kReluModel, sizeof(kReluModel) - 1, options);
  } catch (const Ort::Exception& error) {
    std::string what = error.what();
    while (what.ends_with('\n')) what.pop_back();
    const std::string before = "with error: ";  // the dynamic loader's message follows
    const std::size_t found = what.find(before);
    if (found == std::string::npos) refuse("ONNX Runtime reports: " + what + "; use --device cpu");
    refuse("ONNX Runtime's provider cannot be loaded (" + what.substr(found + before.size()) +
           "); install the versions of " + provider.libraries +
           " that it needs where the dynamic loader finds them, or use --device cpu");
  }
}

void add_provider(Ort::SessionOptions& options, const std::string& device, const fs::path& cache,
                  const std::string& graph) {
  onnxruntime_environment();  // loading a provider writes to the log of the environment
  if (device == "ort-tensorrt") {
    std::string prefix = graph;
    std::ranges::replace(prefix, '/', '-');
    add_tensorrt(options, cache, prefix);
  }
  add_cuda(options);  // also for ort-tensorrt, where CUDA runs the nodes that TensorRT does not
}

}  // namespace intaglio
