#include "backend/provider_memory.h"

#include <cassert>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "backend/loop_graphs.h"
#include "backend/ort_errors.h"
#include "backend/ort_value.h"

namespace intaglio {

namespace {

// One graph, opened, whose tensors are bound anew in each run.
class Program {
 public:
  Program(GraphBuilder& graph, const Ort::Env& environment, const Ort::SessionOptions& options)
      : session_(graph.open(environment, options)), binding_(session_) {}

  Program& input(const std::string& name, const Tensor& tensor) {
    bind_input(binding_, name, tensor);
    return *this;
  }
  Program& output(const std::string& name, const Tensor& tensor) {
    bind_output(binding_, name, tensor);
    return *this;
  }
  void run() {
    session_.Run(Ort::RunOptions{nullptr}, binding_);
    binding_.ClearBoundInputs();
    binding_.ClearBoundOutputs();
  }
  Ort::Session& session() { return session_; }

 private:
  Ort::Session session_;
  Ort::IoBinding binding_;
};

class ProviderMemory final : public DeviceMemory {
  // Calls `body` while nobody else uses the provider here.
  template <typename Body>
  auto guarded(Body&& body) {
    const std::scoped_lock lock(mutex_);
    const auto use = lock_use_();
    return translate_errors("running ", "the loop's arithmetic", device_, body);
  }

 public:
  ProviderMemory(const Ort::Env& environment, std::string device,
                 std::function<Ort::SessionOptions()> make_options,
                 std::function<std::unique_lock<std::mutex>()> lock_use)
      : environment_(environment),
        device_(std::move(device)),
        make_options_(std::move(make_options)),
        lock_use_(std::move(lock_use)) {
    const auto use = lock_use_();
    const auto identity = [&](ONNXTensorElementDataType type) {
      GraphBuilder graph;
      graph.node("Identity", {graph.input("from", type, 1)}, "to");
      graph.output("to", type, 1);
      return open(graph);
    };
    floats_ = identity(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    int64s_ = identity(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    info_ = floats_->session().GetMemoryInfoForInputs().front();
    allocator_.emplace(floats_->session(), info_);
  }

  bool is_host() const { return info_.GetDeviceType() == OrtMemoryInfoDeviceType_CPU; }

  Tensor allocate(const Shape& shape, DType dtype) override {
    return guarded([&] {
      ++counts_.allocations;
      // Whoever drops a tensor last frees its memory, perhaps in another thread.
      auto* made = new Ort::Value(
          Ort::Value::CreateTensor(*allocator_, shape.data(), shape.size(), ort_type(dtype)));
      std::shared_ptr<void> value(made, [lock_use = lock_use_](Ort::Value* freed) {
        const auto use = lock_use();
        delete freed;
      });
      return Tensor(shape, dtype, made->GetTensorMutableRawData(), std::move(value),
                    Device::provider);
    });
  }

  StreamCounts counts() const override {
    const std::scoped_lock lock(mutex_);
    return counts_;
  }

  // Binding copies to and from the device, whatever the provider.
  void copy(const Tensor& from, Tensor to) override {
    assert(from.size() == to.size() && from.dtype() == to.dtype());
    guarded([&] {
      ++counts_.copies;
      counts_.copied_bytes += static_cast<std::int64_t>(from.bytes());
      Program& identity = from.dtype() == DType::int64 ? *int64s_ : *floats_;
      identity.input("from", flat(from)).output("to", flat(to)).run();
    });
  }

  void gather(const GatherRows& rows) override {
    guarded([&] {
      const GatherForm form{.members = rows.members.size(),
                            .rank = rows.latent.shape().size(),
                            .modulation = rows.members.front().modulation.defined(),
                            .keep = rows.keep.defined()};
      auto& program = gathers_[form];
      if (!program) program = build([&](GraphBuilder& graph) { build_gather(graph, form); });
      for (std::size_t i = 0; i < rows.members.size(); ++i) {
        const GatherRows::Member& member = rows.members[i];
        const std::string n = std::to_string(i);
        program->input("x" + n, member.x)
            .input("table" + n, member.request.table)
            .input("position" + n, member.position);
        if (form.modulation) program->input("modulation" + n, member.modulation);
        if (form.keep) program->input("mask" + n, member.request.token_mask);
      }
      program->input("images", rows.images).input("times", rows.times);
      program->output("latent", rows.latent).output("time", rows.time);
      if (form.keep)
        program->input("keeps", rows.keeps).input("ones", rows.ones).output("keep", rows.keep);
      program->run();
    });
  }

  void step(const DeviceStep& step) override {
    guarded([&] {
      const StepForm form{.rank = step.from.x.shape().size(),
                          .unconditional_cache = step.from.newer_unconditional.defined(),
                          .degraded_cache = step.from.newer_degraded.defined(),
                          .guided_cache = step.from.newer_guided.defined(),
                          .scales_tokens = step.scales_tokens,
                          .term_mask = step.term_mask.defined(),
                          .corrects = step.from.older_denoised.defined(),
                          .noise = step.noise.defined(),
                          .rule = step.rule.kind,
                          .momentum = step.rule.has_momentum(),
                          .rescales = step.rule.rescale > 0,
                          .normalizes = step.rule.normalization > 0,
                          .tag = step.correction.tag != 1,
                          .previous = step.correction.prev != 0,
                          .kept = step.drawn.defined()};
      auto& program = steps_[form];
      if (!program) program = build([&](GraphBuilder& graph) { build_step(graph, form); });
      program->input("prediction", step.prediction)
          .input("degraded_prediction", step.degraded_prediction)
          .input("conditional", step.conditional)
          .input("unconditional", step.unconditional)
          .input("degraded", step.degraded)
          .input("table", step.table);
      if (form.term_mask) program->input("term_mask", step.term_mask);
      const auto state = [&](const char* name, const Tensor& from, const Tensor& to) {
        program->input(name, from).output(std::string(name) + "_to", to);
      };
      state("position", step.from.position, step.to.position);
      state("x", step.from.x, step.to.x);
      state("previous_denoised", step.from.previous_denoised, step.to.previous_denoised);
      state("previous_x", step.from.previous_x, step.to.previous_x);
      program->output("denoised_to", step.to.denoised);
      if (form.unconditional_cache) {
        state("newer_unconditional", step.from.newer_unconditional, step.to.newer_unconditional);
        state("older_unconditional", step.from.older_unconditional, step.to.older_unconditional);
      }
      if (form.degraded_cache) {
        state("newer_degraded", step.from.newer_degraded, step.to.newer_degraded);
        state("older_degraded", step.from.older_degraded, step.to.older_degraded);
      }
      if (form.previous)
        state("previous_guided", step.from.previous_guided, step.to.previous_guided);
      if (form.corrects) state("older_denoised", step.from.older_denoised, step.to.older_denoised);
      if (form.noise) program->input("noise", step.noise);
      if (form.momentum) state("momentum", step.from.momentum, step.to.momentum);
      if (form.guided_cache) {
        state("newer_guided", step.from.newer_guided, step.to.newer_guided);
        state("older_guided", step.from.older_guided, step.to.older_guided);
        program->output("distance", step.distance);
      }
      if (form.kept)
        program->input("drawn", step.drawn)
            .input("kept_clean", step.kept_clean)
            .input("kept_noise", step.kept_noise);
      program->run();
    });
  }

 private:
  std::unique_ptr<Program> open(GraphBuilder& graph) {
    return std::make_unique<Program>(graph, environment_, make_options_());
  }

  template <typename Build>
  std::unique_ptr<Program> build(Build&& add_nodes) {
    GraphBuilder graph;
    add_nodes(graph);
    return open(graph);
  }

  // The same memory with one axis.
  Tensor flat(const Tensor& tensor) const {
    if (tensor.device() == Device::cpu) return tensor.reshaped({tensor.size()});
    const std::int64_t size = tensor.size();
    auto value = std::make_shared<Ort::Value>(
        Ort::Value::CreateTensor(info_, const_cast<void*>(tensor.data()), tensor.bytes(), &size, 1,
                                 ort_type(tensor.dtype())));
    return Tensor({size}, tensor.dtype(), const_cast<void*>(tensor.data()), std::move(value),
                  Device::provider);
  }

  const Ort::Env& environment_;
  std::string device_;
  std::function<Ort::SessionOptions()> make_options_;
  std::function<std::unique_lock<std::mutex>()> lock_use_;
  mutable std::mutex mutex_;  // a preview may be read while the loop goes on
  StreamCounts counts_;
  std::unique_ptr<Program> floats_, int64s_;
  Ort::ConstMemoryInfo info_;
  std::optional<Ort::Allocator> allocator_;
  std::map<GatherForm, std::unique_ptr<Program>> gathers_;
  std::map<StepForm, std::unique_ptr<Program>> steps_;
};

}  // namespace

std::shared_ptr<DeviceMemory> make_provider_memory(
    const Ort::Env& environment, const std::string& device,
    std::function<Ort::SessionOptions()> make_options,
    std::function<std::unique_lock<std::mutex>()> lock_use) {
  auto memory = std::make_shared<ProviderMemory>(environment, device, std::move(make_options),
                                                 std::move(lock_use));
  return memory->is_host() ? nullptr : memory;
}

}  // namespace intaglio
