#include "backend/tensorrt_engine.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <map>
#include <regex>
#include <set>
#include <utility>

#include "backend/cuda_device.h"
#include "intaglio/error.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

// TensorRT logs where it fails, mostly on the thread that called it, and returns false or null.
thread_local std::string last_error;
// For what it does on threads of its own.
std::mutex any_mutex;
std::string any_error;

template <typename Base>
class ErrorLogger final : public Base {
 public:
  void log(trt::Severity severity, const char* message) noexcept override {
    if (severity > trt::Severity::error) return;
    try {
      // The first is the cause of those that follow.
      if (last_error.empty()) last_error = message;
      const std::scoped_lock lock(any_mutex);
      if (any_error.empty()) any_error = message;
    } catch (...) {  // no memory for a message: then there is none
    }
  }
};

// They outlive every runtime.
void* logger_for(const TensorRtApi& api) {
  static auto* before = new ErrorLogger<trt::Logger10>;
  static auto* now = new ErrorLogger<trt::Logger11>;
  return api.versioned_logger ? static_cast<void*>(now) : before;
}

// Without the places in TensorRT's own code.
std::string without_places(const std::string& message) {
  static const std::regex place(R"(\.? *\bIn [\w:~<>]+ at /[^ )]+ ?)");
  return std::regex_replace(message, place, "");
}

// A plan, mapped: reading a large one would take its size in memory again.
class MappedFile {
 public:
  explicit MappedFile(const fs::path& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status{};
    const bool known = file >= 0 && fstat(file, &status) == 0;
    size_ = known ? static_cast<std::size_t>(status.st_size) : 0;
    if (size_ > 0) data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    const int error = errno;
    if (file >= 0) close(file);
    if (size_ > 0 && data_ != MAP_FAILED) return;
    throw UnavailableError("cannot read " + path.string() + ": " +
                           (known && size_ == 0 ? "it is empty" : std::strerror(error)) +
                           "; run intaglio build again");
  }
  ~MappedFile() { munmap(data_, size_); }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const void* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  void* data_ = MAP_FAILED;
  std::size_t size_ = 0;
};

}  // namespace

void forget_tensorrt_errors() {
  last_error.clear();
  const std::scoped_lock lock(any_mutex);
  any_error.clear();
}

bool tensorrt_complains() { return !last_error.empty(); }

void refuse_tensorrt(const std::string& doing) {
  std::string said = std::exchange(last_error, {});
  {
    const std::scoped_lock lock(any_mutex);
    if (said.empty()) said = any_error;
    any_error.clear();
  }
  const std::string why = without_places(said);
  std::string lower = why;
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const bool memory = lower.find("out of memory") != std::string::npos ||
                      lower.find("outofmemory") != std::string::npos;
  if (memory) {
    throw OutOfMemoryError(doing + " needs more memory than the GPU has" + free_memory() + " (" +
                           why + "): use a smaller size or batch, or build with --low-memory");
  }
  throw UnavailableError(doing + " failed: " + (why.empty() ? "TensorRT gives no reason" : why));
}

TensorRtObject make_runtime(const TensorRtLibrary& library) {
  forget_tensorrt_errors();
  void* logger = logger_for(*library.api);
  TensorRtObject runtime(
      static_cast<trt::Wrapper*>(library.create_runtime(logger, library.number)));
  if (!runtime) refuse_tensorrt("starting " + library.title + " " + library.version);
  // The method that gives a runtime's logger stands behind those that the generations differ in.
  if (trt::call<void*>(runtime.get(), library.api->runtime.get_logger) != logger) {
    throw UnavailableError(library.title + " " + library.version +
                           " does not have the interface of its version: install another");
  }
  return runtime;
}

TensorRtEngine::TensorRtEngine(const TensorRtLibrary& library, const EngineComponent& component,
                               const fs::path& plan, bool weight_streaming)
    : name_(plan.string()),
      api_(*library.api),
      weight_streaming_(weight_streaming),
      runtime_(make_runtime(library)) {
  const MappedFile content(plan);
  engine_.reset(trt::call<trt::Wrapper*>(runtime_.get(), api_.runtime.deserialize, content.data(),
                                         content.size()));
  if (!engine_) refuse_tensorrt("loading " + name_);
  check_tensors(component);
  if (weight_streaming) stream_weights(component);
  if (api_.engine.create_config != kNoSuchMethod) configure();
}

TensorRtEngine::~TensorRtEngine() {
  const UseDevice device;
  config_.reset();
  cache_.reset();
  engine_.reset();
  runtime_.reset();
}

// Before any context is there.
void TensorRtEngine::stream_weights(const EngineComponent& component) {
  // TensorRT's own choice takes all the memory that is free, and a run needs some.
  const auto automatic =
      trt::call<std::int64_t>(engine_.get(), api_.engine.automatic_streaming_budget);
  const auto budget =
      std::max<std::int64_t>(0, automatic - static_cast<std::int64_t>(component.activation_bytes));
  if (!trt::call<bool>(engine_.get(), api_.engine.set_streaming_budget, budget))
    refuse_tensorrt("streaming the weights of " + name_);
}

// TensorRT-RTX compiles kernels for a shape while it runs, so it records CUDA graphs itself, and
// again when it has better ones; what it has compiled serves all contexts.
void TensorRtEngine::configure() {
  const auto& api = api_.config;
  config_.reset(trt::call<trt::Wrapper*>(engine_.get(), api_.engine.create_config));
  if (!config_) refuse_tensorrt("configuring " + name_);
  trt::call<void>(config_.get(), api.set_allocation, trt::Allocation::user_managed);
  cache_.reset(trt::call<trt::Wrapper*>(config_.get(), api.create_cache));
  // By reference, which is a pointer to the callee.
  if (!cache_ || !trt::call<bool>(config_.get(), api.set_cache, cache_.get()))
    refuse_tensorrt("making a cache of kernels for " + name_);
  // Weights that are streamed come from the host, by decisions that a graph cannot take.
  if (!weight_streaming_ && !trt::call<bool>(config_.get(), api.set_graphs, trt::CudaGraphs::whole))
    refuse_tensorrt("asking for CUDA graphs of " + name_);
}

// Reads only, so what lies elsewhere than we think shows here before anything is changed.
void TensorRtEngine::check_tensors(const EngineComponent& component) const {
  std::set<std::string> expected, found;
  for (const auto* tensors : {&component.inputs, &component.outputs})
    for (const EngineTensor& tensor : *tensors) expected.insert(tensor.name);
  const auto count = trt::call<std::int32_t>(engine_.get(), api_.engine.tensor_count);
  for (std::int32_t i = 0; i < count; ++i)
    found.insert(trt::call<const char*>(engine_.get(), api_.engine.tensor_name, i));
  if (found == expected) return;
  throw UnavailableError(name_ +
                         " has other inputs and outputs than engine.json says: run intaglio build "
                         "again");
}

TensorRtContext TensorRtEngine::make_context() const {
  const std::scoped_lock lock(mutex_);
  forget_tensorrt_errors();
  auto* made = config_ ? trt::call<trt::Wrapper*>(
                             engine_.get(), api_.engine.create_configured_context, config_.get())
                       : trt::call<trt::Wrapper*>(engine_.get(), api_.engine.create_context,
                                                  trt::Allocation::user_managed);
  if (!made) refuse_tensorrt("preparing " + name_);
  return {made, [this](trt::Wrapper* context) {
            const std::scoped_lock deleting(mutex_);
            trt::Delete{}(context);
          }};
}

std::shared_ptr<const TensorRtEngine> load_engine(const TensorRtLibrary& library,
                                                  const EngineFolder& folder,
                                                  const EngineComponent& component) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<const TensorRtEngine>> engines;
  const fs::path plan = folder.path / component.plan;
  // A plan that was built again has another key.
  const std::string key =
      fs::weakly_canonical(plan).string() + "\n" + component.key + "\n" + library.version;
  const UseDevice device;
  const std::scoped_lock lock(mutex);  // a second one waits for the first instead of loading twice
  if (auto engine = engines[key].lock()) return engine;
  if (!folder.weight_streaming())
    check_device_memory(static_cast<std::int64_t>(component.weights_bytes),
                        "loading " + plan.string());
  auto engine =
      std::make_shared<const TensorRtEngine>(library, component, plan, folder.weight_streaming());
  engines[key] = engine;
  return engine;
}

}  // namespace intaglio
