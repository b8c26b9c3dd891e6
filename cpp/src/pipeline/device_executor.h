// Runs the transformer's branches where the requests' memory is a device's. Nothing crosses to the
// host until somebody asks, or steps may be skipped, and nothing has to be written in place: a
// graph reads some tensors of the device and writes others.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "backend/device_memory.h"
#include "pipeline/branch_executor.h"
#include "pipeline/loop_executor.h"

namespace intaglio {

class DeviceExecutor final : public LoopExecutor {
 public:
  // Runs requests of up to so many images, whose shared inputs are `shared`. References must
  // outlive the executor.
  DeviceExecutor(const Bundle& bundle, const TransformerSessions& sessions,
                 const SharedInputs& shared, std::int64_t images, Stream& stream,
                 std::shared_ptr<DeviceMemory> memory);

  void add(DenoisingState& state, const LoopStart& start, bool alone) override;
  void remove(std::int64_t id) override;
  void run(std::span<DenoisingState* const> states) override;
  void step(DenoisingState& state) override;
  void wait() override {}  // a run of ONNX Runtime ends with the device's work
  Tensor latents(const DenoisingState& state) override {
    return memory_->download(members_.at(state.id()).now.x);
  }
  void set_latents(const DenoisingState& state, const Tensor& latents) override {
    memory_->copy(latents, members_.at(state.id()).now.x);
  }
  std::function<Tensor()> denoised(const DenoisingState& state) override;
  Tensor observed(Role::Kind output, int block) override;

 private:
  // A row of a graph: a branch of one image of a request.
  struct Row {
    DenoisingState* state;
    std::int64_t image;
    Branch branch;
  };
  using Rows = std::vector<Row>;

  // A request with the weights of one of its steps.
  struct Asked {
    DenoisingState* state;
    const StepWeights* weights;
  };

  struct Member {
    DeviceRequest request;
    Tensor table;  // its table in host memory, where steps may be skipped
    DeviceState now, next;
    DeviceStep step;  // where run() left the predictions
  };

  // One of the transformer's graphs with its tensors, for a number of rows.
  struct Bound {
    std::string graph;
    std::int64_t base = 0, rows = 0;  // rows before and after the fork of a graph that has one
    GatherRows gather;
    Tensor branch;
    Tensor source, anchor;  // where the graph takes them
    std::map<Role, Tensor> prompts, outputs;
    std::unique_ptr<BoundGraph> bound;
    // The request, image and branch of each row that the tensors are filled for, and the rows of
    // each request and branch.
    std::vector<std::tuple<std::int64_t, std::int64_t, Branch>> filled;
    std::map<std::pair<std::int64_t, Branch>, Tensor> places;
  };

  Bound& bind(const std::string& graph, std::int64_t base, std::int64_t rows);
  void add_inputs(Bound& bound, std::vector<Binding>& inputs);
  void add_outputs(Bound& bound, std::vector<Binding>& outputs);
  void fill(Bound& bound, const Rows& rows);
  void fill_indices(Bound& bound, const Rows& rows);
  void fill_prompts(Bound& bound, const Rows& rows);
  // Returns the graphs that run for asked_, filled: one, or with the layout dual perhaps two.
  std::vector<Bound*> prepare();
  Bound& prepare(const std::string& graph, const Rows& base, const Rows& degraded);
  Rows rows_of(Branch branch) const;
  // The number of rows that run where `rows` are needed, so that fewer forms are bound and
  // compiled. At most `limit` rows are ever needed.
  std::int64_t bucket(std::size_t rows, std::int64_t limit) const;

  const Bundle& bundle_;
  const TransformerSessions& sessions_;
  SharedInputs shared_;
  Stream& stream_;
  std::shared_ptr<DeviceMemory> memory_;
  std::int64_t images_;  // at most
  bool alone_ = false;
  std::map<Role, Tensor> shared_tensors_;
  Tensor ones_;                             // [1, tokens]
  std::map<std::int64_t, Member> members_;  // by the request's id
  std::vector<Asked> asked_;                // of the last run()
  std::list<Bound> bound_;                  // the latest first
};

}  // namespace intaglio
