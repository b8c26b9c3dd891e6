// The memory of a device that has its own, and the loop's arithmetic there. Nothing in the loop
// crosses to the host, but for the distance that decides whether a step is skipped.
#pragma once

#include <cstdint>
#include <vector>

#include "intaglio/backend.h"
#include "intaglio/cfg_rule.h"
#include "intaglio/tensor.h"

namespace intaglio {

// What the loop keeps of one request on the device. A step reads one of these and writes another.
struct DeviceState {
  Tensor x, denoised, previous_denoised, previous_x;
  // The last two differences of D_0 and of D_m from D_c; not defined where no step reuses them.
  Tensor newer_unconditional, older_unconditional, newer_degraded, older_degraded;
  // The last two guided predictions; not defined where no step is skipped.
  Tensor newer_guided, older_guided;
  Tensor momentum;         // of CfgRule; not defined where the rule has none
  Tensor previous_guided;  // D; not defined where Correction does not need it
  Tensor older_denoised;   // of SamplerMemory; not defined where the sampler does not correct x
  Tensor position;         // [1], float32: the row of the table that comes next
};

// What stays the same for a request.
struct DeviceRequest {
  Tensor table;       // [evaluations, kStepColumns]
  Tensor token_mask;  // [1, tokens]
};

// Fills the inputs of a run of the transformer from the requests that take part in it.
struct GatherRows {
  struct Member {
    Tensor x, position, modulation;  // modulation [rows, W] is not defined for a timestep
    DeviceRequest request;
  };
  std::vector<Member> members;
  // Of each row, int64: its image among those of all members; its member, or with modulations
  // 3 member + (0 for D_0, 1 for D_c, 2 for D_m); and its member where D_m has it, or else the
  // number of members. Without `keep` the last one is not defined.
  Tensor images, times, keeps;
  Tensor ones;  // [1, tokens], of 1
  // What is written: [rows, ...], [rows] or [rows, W], and [rows, tokens].
  Tensor latent, time, keep;
};

// Moves the images of one request by their predictions.
struct DeviceStep {
  Tensor prediction;                  // [rows, ...], of D_0 and D_c
  Tensor degraded_prediction;         // [rows, ...], of D_m; may be the same tensor
  Tensor conditional, unconditional;  // int64: the rows of each image in `prediction`; a
  Tensor degraded;                    // branch that did not run has those of D_c
  Tensor table;
  bool scales_tokens = false;  // as Combine of core/arithmetic.h; a token is a row of the last axis
  Tensor term_mask;            // [1, ...]: as in core/guided_step.h
  CfgRule rule;                // of which the table has the numbers
  Correction correction;       // the same
  Tensor noise;                // that the sampler adds; not defined where it adds none
  DeviceState from, to;
  Tensor distance;  // [images]: from the line, where `from` has guided predictions
  Tensor drawn, kept_clean,
      kept_noise;  // of Kept of core/guided_step.h; not defined without a mask
};

class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  // Returns memory with any content.
  virtual Tensor allocate(const Shape& shape, DType dtype) = 0;
  // Copies between host and device. The tensors must be of one size and dtype.
  virtual void copy(const Tensor& from, Tensor to) = 0;
  virtual void gather(const GatherRows& rows) = 0;
  virtual void step(const DeviceStep& step) = 0;

  Tensor upload(const Tensor& host) {
    Tensor tensor = allocate(host.shape(), host.dtype());
    copy(host, tensor);
    return tensor;
  }
  Tensor download(const Tensor& tensor) {
    Tensor host(tensor.shape(), tensor.dtype());
    copy(tensor, host);
    return host;
  }
  // What was allocated and copied by all who use the memory.
  virtual StreamCounts counts() const = 0;
};

}  // namespace intaglio
