#include "backend/nvidia_options.h"

#include <algorithm>
#include <map>
#include <memory>
#include <vector>

namespace intaglio {

namespace fs = std::filesystem;

namespace {

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

}  // namespace

void add_cuda(Ort::SessionOptions& options, const std::string& card) {
  const OrtApi& api = Ort::GetApi();
  OrtCUDAProviderOptionsV2* made = nullptr;
  Ort::ThrowOnError(api.CreateCUDAProviderOptions(&made));
  const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(api.ReleaseCUDAProviderOptions)> cuda(
      made, api.ReleaseCUDAProviderOptions);
  // TensorFloat-32 would round the inputs of a float32 matmul to 10 bits of mantissa.
  const ProviderOptions::Map map{{"use_tf32", "0"}, {"device_id", card}};
  const ProviderOptions cuda_options(map);
  Ort::ThrowOnError(api.UpdateCUDAProviderOptions(
      cuda.get(), cuda_options.keys.data(), cuda_options.values.data(), cuda_options.keys.size()));
  options.AppendExecutionProvider_CUDA_V2(*cuda);
}

void add_tensorrt(Ort::SessionOptions& options, const std::string& card, const fs::path& cache,
                  const std::string& graph) {
  // Options such as trt_fp16_enable are left out, so TensorRT computes in the types of the graph.
  // Fixed shapes (trt_profile_*) are left out too, because they would refuse other sizes and
  // batches; without them a profile grows with the requests, and the cache keeps it.
  ProviderOptions::Map map{{"device_id", card}};
  if (!cache.empty()) {
    std::string prefix = graph;
    std::ranges::replace(prefix, '/', '-');
    map.insert({{"trt_engine_cache_enable", "1"},
                {"trt_engine_cache_path", cache.string()},
                {"trt_engine_cache_prefix", prefix},
                {"trt_timing_cache_enable", "1"},
                {"trt_timing_cache_path", cache.string()}});
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

}  // namespace intaglio
