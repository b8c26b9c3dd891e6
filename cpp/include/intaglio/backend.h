// Where graphs and the loop's arithmetic run: the interface between the loop and ONNX Runtime.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "intaglio/role.h"
#include "intaglio/tensor.h"

namespace intaglio {

class DeviceMemory;  // backend/device_memory.h
struct Bundle;       // bundle.h
struct Graph;        // bundle.h
struct GuidedStep;   // core/guided_step.h

// A tensor that is bound to the input or output of a graph with that role.
struct Binding {
  Role role;
  Tensor tensor;
};

// Counts of the allocations and copies of a stream since it was made.
struct StreamCounts {
  std::int64_t allocations = 0;
  std::int64_t copies = 0;
  std::int64_t copied_bytes = 0;
  StreamCounts& operator+=(const StreamCounts& other) {
    allocations += other.allocations;
    copies += other.copies;
    copied_bytes += other.copied_bytes;
    return *this;
  }
  StreamCounts operator-(const StreamCounts& other) const {
    return {allocations - other.allocations, copies - other.copies,
            copied_bytes - other.copied_bytes};
  }
};

// The work of one run in order, and the memory that it works on. Only one thread may use a stream.
class Stream {
 public:
  virtual ~Stream() = default;
  // Allocates memory, filled with zeros, that bound graphs read and write in place.
  virtual Tensor allocate(const Shape& shape, DType dtype) = 0;
  // Copies a tensor to another one of the same size and dtype, each in host memory or the stream's.
  // A copy to host memory is complete when the call returns.
  virtual void copy(const Tensor& from, Tensor to) = 0;
  // The loop's own arithmetic, on float32 in the stream's memory.
  virtual void fill(Tensor to, float value) = 0;
  // rows [n, T] = 1 - (1 - ma_keep) * token_mask [T]
  virtual void fill_keep(Tensor rows, const Tensor& token_mask, float ma_keep) = 0;
  virtual void step(const GuidedStep& step) = 0;
  // Waits until all of the work above is done.
  virtual void wait() = 0;

  const StreamCounts& counts() const { return counts_; }

 protected:
  StreamCounts counts_;
};

// A graph whose tensors are bound. Each run() reads and writes their memory in place. When it
// returns, the outputs are ready for whatever the stream does next, and for the host if they are in
// host memory.
class BoundGraph {
 public:
  virtual ~BoundGraph() = default;
  virtual void run() = 0;
};

// A loaded graph. Several threads may bind it at once, but each BoundGraph belongs to one thread.
class Session {
 public:
  virtual ~Session() = default;
  // Every input and output of the graph must be bound once, to host memory or the stream's. Throws
  // InputError for a tensor whose dtype or shape the manifest does not allow.
  virtual std::unique_ptr<BoundGraph> bind(const std::vector<Binding>& inputs,
                                           const std::vector<Binding>& outputs) const = 0;
};

struct BackendOptions {
  // One of device_names(), with ":" and a number for a card of several ("cuda:1"), or with ":cpu",
  // ":gpu" or ":npu" for OpenVINO, which runs on the CPU otherwise.
  std::string device = "auto";
  int threads = 0;                            // 0: one for each processor that it may use
  std::filesystem::path onnxruntime_library;  // if empty, the library is searched for
  // The library of an execution provider's plugin, by which ONNX Runtime runs OpenVINO,
  // TensorRT-RTX and WebGPU. If empty, it is searched for.
  std::filesystem::path provider_library = {};
  // Whether matrices of the loop's graphs, float32 or quantised, are packed for the processor when
  // they are loaded instead of in each step. Steps are then faster and the start is slower. Each
  // session has packed copies of the weights in its own memory, whereas the mapped file is shared
  // (docs/decisions/0012). Only ONNX Runtime on the CPU does this.
  bool prepack = false;
  // What the device computes in: float32, bfloat16 or float16. Only OpenVINO computes in another
  // type than the graph. Its results then differ from those of the CPU.
  std::string precision = "float32";
  // The most memory that a run may take on the device: "8GB", "500MiB", a number of bytes, or
  // "auto" for what is free. If empty, each part of the bundle stays loaded once it was used, and
  // all images of a run are denoised at once. Runs of a pipeline with a limit wait for each other
  // (memory_plan.h, docs/decisions/0022).
  std::string max_memory = {};
};

// Returns the names of the devices: auto, cpu, and those of ONNX Runtime's execution providers.
const std::vector<std::string>& device_names();

// The device that make_backend chose.
struct DeviceChoice {
  std::string device;     // never auto
  std::string reason;     // for auto: why each better device is not used; else empty
  std::string note;       // the part of the reason that the user can do something about, or empty
  std::string precision;  // the type of the matrix products: float32, bfloat16 or float16
  std::string compiling;  // says that the first run will compile; empty if it need not
};

// Where the nodes of a graph ran on another device than cpu.
struct GraphPlacement {
  std::string graph;  // the path of the file in its bundle
  int nodes = 0;      // of the device's provider; one that compiles makes one of each piece
  // The nodes that other providers ran: how many of each operator, by provider.
  std::map<std::string, std::map<std::string, int>> elsewhere = {};
};

class Backend {
 public:
  virtual ~Backend() = default;
  // Loads a graph of the bundle from its open files.
  virtual std::unique_ptr<Session> load(const Bundle& bundle, const Graph& graph) const = 0;
  virtual std::unique_ptr<Stream> make_stream() const = 0;
  // Returns the memory of the device, or null where the loop runs in the host's.
  virtual std::shared_ptr<DeviceMemory> make_memory() const { return nullptr; }
  // A description for people: "ONNX Runtime 1.32.0, cpu, 2 threads".
  virtual std::string description() const = 0;
  // Returns an entry for each graph that has run, or nothing on the CPU.
  virtual std::vector<GraphPlacement> placements() const { return {}; }

  DeviceChoice choice;
};

// Returns a sentence for each graph of which another provider than the device's ran nodes.
std::vector<std::string> placement_notes(const Backend& backend);

// One device and whether it works on this machine.
struct DeviceStatus {
  std::string device;  // as BackendOptions::device takes it: "cpu", "openvino:gpu", "cuda:1"
  bool works = false;
  std::string runtime = {};  // "ONNX Runtime 1.32.0", and the provider with its version if it works
  std::string card = {};     // the name of the card or processor, if it works and is known
  std::uint64_t memory_bytes = 0;  // all of its memory; 0 if unknown
  std::string driver = {};         // the version of NVIDIA's driver, for its cards
  std::string reason = {};         // why it does not work
  std::string remedy = {};         // what would change that, where there is something
};

// Returns the version of ONNX Runtime's library, such as "1.27.0". The library is loaded. Throws
// UnavailableError when there is none that can be used.
std::string onnxruntime_version(const BackendOptions& options);

// Tries every device with a graph of one node. Cards are listed by their number.
std::vector<DeviceStatus> list_devices(const BackendOptions& options);

// Returns a backend that runs this bundle's graphs. `auto` takes the first that works of
// tensorrt-rtx (unless the bundle is float32, which TensorRT would round), cuda, openvino:gpu,
// webgpu and cpu. Throws UsageError for an unknown device or a precision that it does not have, and
// UnavailableError when the device or its library is missing.
std::shared_ptr<Backend> make_backend(const BackendOptions& options, const Bundle& bundle);

}  // namespace intaglio
