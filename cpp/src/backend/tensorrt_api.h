// The part of TensorRT's binary interface that we call, without its headers: where each method is
// in its object's table. Of two generations, since 11 took methods out of the middle;
// TensorRT-RTX 1.7 is of the second (docs/decisions/0008).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace intaglio {

// Indices into the tables of the objects that TensorRT's wrappers (IRuntime, ICudaEngine,
// IExecutionContext) point to.
struct TensorRtApi {
  bool versioned_logger;  // trt::Logger11
  struct {
    std::size_t deserialize, get_logger;
  } runtime;
  struct {
    std::size_t create_context, tensor_count, tensor_name, set_streaming_budget,
        automatic_streaming_budget, create_configured_context, create_config;
  } engine;
  struct {
    std::size_t set_profile, set_input_shape, tensor_shape, set_address, infer_shapes, enqueue,
        update_memory_size, set_memory;
  } context;
  struct {
    std::size_t set_allocation, create_cache, set_cache, set_graphs;
  } config;  // TensorRT-RTX's
};

extern const TensorRtApi kTensorRt10;
extern const TensorRtApi kTensorRt11;
extern const TensorRtApi kTensorRtRtx;           // 1.7
inline constexpr std::size_t kNoSuchMethod = 0;  // what an interface has no need of

namespace trt {

// nvinfer1's types of the same names, as they lie in memory.
struct Dims {
  std::int32_t count;
  std::int64_t sizes[8];
};
enum class Allocation : std::int32_t { user_managed = 2 };
enum class CudaGraphs : std::int32_t { whole = 1 };
enum class Severity : std::int32_t { internal_error = 0, error = 1, warning = 2 };

// nvinfer1::ILogger of either generation: which virtual functions, and in which order.
class Logger10 {
 public:
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~Logger10() = default;
};
struct InterfaceInfo {
  const char* kind;
  std::int32_t major, minor;
};
class Logger11 {
 public:
  virtual std::int32_t language() const noexcept { return 0; }  // C++
  virtual InterfaceInfo info() const noexcept { return {"ILogger", 1, 0}; }
  virtual ~Logger11() = default;
  virtual void log(Severity severity, const char* message) noexcept = 0;
};

// One of TensorRT's wrappers: its own table, whose second entry deletes it, and then the object
// that does the work.
struct Wrapper {
  void** table;
  void* implementation;
};

inline void* method(const Wrapper* object, std::size_t slot) {
  return (*static_cast<void***>(object->implementation))[slot];
}

// A virtual method takes the object as its first argument.
template <typename Result, typename... Args>
Result call(const Wrapper* object, std::size_t slot, Args... args) {
  using Method = Result (*)(void*, Args...);
  return reinterpret_cast<Method>(method(object, slot))(object->implementation, args...);
}

// For smart pointers.
struct Delete {
  void operator()(Wrapper* object) const {
    reinterpret_cast<void (*)(Wrapper*)>(object->table[1])(object);
  }
};

}  // namespace trt

}  // namespace intaglio
