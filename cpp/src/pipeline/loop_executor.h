// What the denoising loop computes, where the requests' memory is: the host's (BranchExecutor) or a
// device's (DeviceExecutor).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "pipeline/denoising_state.h"

namespace intaglio {

// Throws UsageError where the bundle has no such output of that block.
void check_observed(const Bundle& bundle, Role::Kind output, int block);

class LoopExecutor {
 public:
  virtual ~LoopExecutor() = default;

  // Allocates what the request needs, which begins at `start`. `alone` says that it fills all
  // rows and that no other request can join.
  virtual void add(DenoisingState& state, const LoopStart& start, bool alone) = 0;
  virtual void remove(std::int64_t id) = 0;

  // Runs the branches that each request's next evaluation needs.
  virtual void run(std::span<DenoisingState* const> states) = 0;
  // Moves a request's latents by its predictions, and the request to its next evaluation.
  virtual void step(DenoisingState& state) = 0;
  // Waits until all of this is done.
  virtual void wait() = 0;

  // The request's latents, which may be written; on a device they are a copy.
  virtual Tensor latents(const DenoisingState& state) = 0;
  // Takes back what was written into latents().
  virtual void set_latents(const DenoisingState& state, const Tensor& latents) = 0;
  // Returns what copies the clean data that the last step estimated to the host. It needs neither
  // the loop nor the thread of the loop.
  virtual std::function<Tensor()> denoised(const DenoisingState& state) = 0;
  // Returns an output of a block of an observed bundle, in host memory: hidden_states [rows, T, C]
  // or gate [rows, C] of the rows that the last run() ran through it. Throws UsageError for another
  // bundle or block.
  virtual Tensor observed(Role::Kind output, int block) = 0;

  double network_seconds = 0;  // in the graphs, of all runs
};

}  // namespace intaglio
