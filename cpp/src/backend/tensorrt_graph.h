// One engine with its tensors bound, on one stream.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/cuda_stream.h"
#include "backend/tensorrt_engine.h"

namespace intaglio {

class TensorRtGraph final : public BoundGraph {
 public:
  // `inputs` and `outputs` are named as the engine names them, and fit `profile`. `name` is the
  // graph's, for messages.
  TensorRtGraph(std::string name, std::shared_ptr<const TensorRtEngine> engine, int profile,
                CudaStream& stream, const std::vector<Binding>& inputs,
                const std::vector<Binding>& outputs);
  TensorRtGraph(const TensorRtGraph&) = delete;
  TensorRtGraph& operator=(const TensorRtGraph&) = delete;
  void run() override;

 private:
  struct Bound {
    std::string name;
    Tensor tensor;
    Tensor staged;  // what the engine sees; without memory where that is `tensor` itself
  };
  template <typename Result, typename... Args>
  Result call(std::size_t slot, Args... args) const {
    return trt::call<Result>(context_.get(), slot, args...);
  }
  [[noreturn]] void refuse(const std::string& doing) const;
  Bound bind(const Binding& binding);
  void set_shape(const Bound& input);
  void check_shape(const Bound& output) const;
  void give_memory();
  void enqueue();
  bool capture();
  bool capturable() const;

  std::string name_;
  std::shared_ptr<const TensorRtEngine> engine_;
  CudaStream& stream_;
  TensorRtContext context_;
  std::vector<Bound> inputs_, outputs_;
  std::shared_ptr<void> memory_;  // for what is between inputs and outputs
  int runs_ = 0;
  bool capture_failed_ = false;
  std::unique_ptr<CUgraphExec_st, cudaError_t (*)(cudaGraphExec_t)> captured_{nullptr,
                                                                              cudaGraphExecDestroy};
  // Destroyed first: what still runs uses all of the above.
  struct WaitsAtTheEnd {
    CudaStream& stream;
    ~WaitsAtTheEnd();
  } wait_{stream_};
};

}  // namespace intaglio
