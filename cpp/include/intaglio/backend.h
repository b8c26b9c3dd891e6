// Where graphs and the loop's arithmetic run: the seam between the loop and ONNX Runtime.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "intaglio/tensor.h"

namespace intaglio {

struct Bundle;      // bundle.h
struct Graph;       // bundle.h
struct GuidedStep;  // core/guided_step.h

// A tensor for one input or output of a graph, by the role that the manifest gives it.
struct Binding {
  std::string role;
  Tensor tensor;
};

// What a stream was asked for since it was made.
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

// The work of one run in order, and the memory that it works on. One thread's own.
class Stream {
 public:
  virtual ~Stream() = default;
  // Zero-filled memory that bound graphs read and write where it is.
  virtual Tensor allocate(const Shape& shape, DType dtype) = 0;
  // Between host memory and the stream's, in either direction, or within either; of one size and
  // dtype. What is copied to host memory is there when the call returns.
  virtual void copy(const Tensor& from, Tensor to) = 0;
  // The loop's own arithmetic, on the stream's memory, float32.
  virtual void fill(Tensor to, float value) = 0;
  // rows [n, T] = 1 - (1 - keep) * suppression [T]
  virtual void fill_keep(Tensor rows, const Tensor& suppression, float keep) = 0;
  virtual void step(const GuidedStep& step) = 0;
  // Until everything above has been done.
  virtual void wait() = 0;

  const StreamCounts& counts() const { return counts_; }

 protected:
  StreamCounts counts_;
};

// One graph with its tensors bound: run() reads and writes their memory in place, again and again.
// When it returns the outputs are there for whatever the stream does next, and for the host where
// they are host memory.
class BoundGraph {
 public:
  virtual ~BoundGraph() = default;
  virtual void run() = 0;
};

// A loaded graph. Safe to bind from several threads at once; each BoundGraph is one thread's own.
class Session {
 public:
  virtual ~Session() = default;
  // Every input and output of the graph must be bound once, to host memory or the stream's. A
  // tensor of a dtype or shape that the manifest does not allow throws InputError. `stream` must
  // outlive the result.
  virtual std::unique_ptr<BoundGraph> bind(Stream& stream, const std::vector<Binding>& inputs,
                                           const std::vector<Binding>& outputs) const = 0;
};

struct BackendOptions {
  std::string device = "auto";                // one of device_names()
  int threads = 0;                            // 0: one per logical core
  std::filesystem::path onnxruntime_library;  // empty: searched for
  // Whether matrices of the loop's graphs, float32 or quantised, are packed for the processor when
  // they are loaded, not in each step: quicker steps, a slower start, and each session's own memory
  // in place of the mapped file that all share (docs/decisions/0012). Where ONNX Runtime runs them
  // on the CPU; ignored elsewhere.
  bool prepack = false;
};

// auto, cpu, cuda and ort-tensorrt (ONNX Runtime's providers), tensorrt and tensorrt-rtx, which
// make_backend refuses: engines can be built, but not yet run (docs/decisions/0008).
const std::vector<std::string>& device_names();

// The device that make_backend took.
struct DeviceChoice {
  std::string device;  // never auto
  std::string reason;  // for auto: why not each better one; else empty
  std::string note;    // the part of it that points at something to repair, or empty
};

class Backend {
 public:
  virtual ~Backend() = default;
  // `bundle_root` is the folder that the graph's path is relative to.
  virtual std::unique_ptr<Session> load(const std::filesystem::path& bundle_root,
                                        const Graph& graph) const = 0;
  virtual std::unique_ptr<Stream> make_stream() const = 0;
  // For people: "ONNX Runtime 1.32.0, cpu, 2 threads".
  virtual std::string description() const = 0;

  DeviceChoice choice;
};

// What runs this bundle's graphs. `auto` takes cuda where it works, else cpu. Throws UsageError for
// an unknown device, and UnavailableError when the device or its library is not there.
std::shared_ptr<Backend> make_backend(const BackendOptions& options, const Bundle& bundle);

}  // namespace intaglio
