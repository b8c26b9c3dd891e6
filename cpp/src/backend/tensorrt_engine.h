// TensorRT's objects, owned: a plan becomes an engine once for the whole process.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "backend/tensorrt_api.h"
#include "backend/tensorrt_library.h"
#include "bundle/engines.h"
#include "intaglio/tensor.h"

namespace intaglio {

using TensorRtObject = std::unique_ptr<trt::Wrapper, trt::Delete>;
using TensorRtContext = std::unique_ptr<trt::Wrapper, std::function<void(trt::Wrapper*)>>;

// Before a call whose failure is to be told.
void forget_tensorrt_errors();
// Whether TensorRT has said something on this thread since then.
bool tensorrt_complains();
// Throws what TensorRT has said on this thread since then: OutOfMemoryError, or UnavailableError.
// `doing` as in "loading forked.plan".
[[noreturn]] void refuse_tensorrt(const std::string& doing);

// Throws UnavailableError when the library gives none, or
// turns out to have another interface than its version says.
TensorRtObject make_runtime(const TensorRtLibrary& library);

// Weights in the GPU's memory, shared by whatever runs them. Safe to use from several threads.
class TensorRtEngine {
 public:
  // Throws UnavailableError for a plan that cannot be read, and OutOfMemoryError.
  TensorRtEngine(const TensorRtLibrary& library, const EngineComponent& component,
                 const std::filesystem::path& plan, bool weight_streaming);

  const TensorRtApi& api() const { return api_; }
  bool weight_streaming() const { return weight_streaming_; }
  // Its contexts make CUDA graphs of what they run.
  bool records_graphs() const { return config_ != nullptr; }
  // Without memory of its own. Throws OutOfMemoryError or UnavailableError.
  // The engine must outlive it; TensorRT makes and deletes one at a time.
  TensorRtContext make_context() const;
  ~TensorRtEngine();
  TensorRtEngine(const TensorRtEngine&) = delete;
  TensorRtEngine& operator=(const TensorRtEngine&) = delete;

 private:
  void check_tensors(const EngineComponent& component) const;
  void stream_weights(const EngineComponent& component);
  void configure();

  std::string name_;  // of the plan, for messages
  const TensorRtApi& api_;
  bool weight_streaming_;
  TensorRtObject runtime_;  // must outlive the engine
  TensorRtObject engine_;
  // TensorRT-RTX's: what it compiles on this GPU, for all contexts, and how it makes them.
  TensorRtObject cache_, config_;
  mutable std::mutex mutex_;
};

// The engine of a plan that is in use already, or a new one.
std::shared_ptr<const TensorRtEngine> load_engine(const TensorRtLibrary& library,
                                                  const EngineFolder& folder,
                                                  const EngineComponent& component);

}  // namespace intaglio
