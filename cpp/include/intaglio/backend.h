// Where graphs run. The seam between the loop and ONNX Runtime (TensorRT later).
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "intaglio/tensor.h"

namespace intaglio {

struct Graph;  // bundle.h

// A tensor for one input or output of a graph, by the role that the manifest gives it.
struct Binding {
  std::string role;
  Tensor tensor;
};

// One graph with its tensors bound: run() reads and writes their memory in place, again and again.
class BoundGraph {
 public:
  virtual ~BoundGraph() = default;
  virtual void run() = 0;
};

// A loaded graph. Safe to bind from several threads at once; each BoundGraph is one thread's own.
class Session {
 public:
  virtual ~Session() = default;
  // Every input and output of the graph must be bound once. A tensor of a dtype or shape that the
  // manifest does not allow throws InputError.
  virtual std::unique_ptr<BoundGraph> bind(const std::vector<Binding>& inputs,
                                           const std::vector<Binding>& outputs) const = 0;
};

struct BackendOptions {
  std::string device = "cpu";
  int threads = 0;                            // 0: one per logical core
  std::filesystem::path onnxruntime_library;  // empty: searched for
};

class Backend {
 public:
  virtual ~Backend() = default;
  // `bundle_root` is the folder that the graph's path is relative to.
  virtual std::unique_ptr<Session> load(const std::filesystem::path& bundle_root,
                                        const Graph& graph) const = 0;
  // For people: "ONNX Runtime 1.32.0, cpu, 2 threads".
  virtual std::string description() const = 0;
};

// Throws UnavailableError when the device or its library is not there.
std::shared_ptr<Backend> make_backend(const BackendOptions& options);

}  // namespace intaglio
