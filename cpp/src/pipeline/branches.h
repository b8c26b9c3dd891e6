// The transformer's branches for one request, in both layouts.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/embedding.h"
#include "intaglio/guidance.h"
#include "pipeline/conditioning.h"
#include "pipeline/request.h"

namespace intaglio {

// The transformer's graphs, loaded: forked, or base and degraded; conditioning, if there is one.
using TransformerSessions = std::map<std::string, std::unique_ptr<Session>>;
TransformerSessions load_transformer(const Bundle& bundle, const Backend& backend);

// Runs the branches that a step needs and leaves each prediction in a buffer of its own. Rows stand
// in the order D_0, D_c, D_m; leaving a branch out takes a shorter view of the same memory. All
// memory is the stream's, and is allocated, filled with what stays the same, and bound here, before
// the loop.
class Branches {
 public:
  // `embeds` has what the graphs take of it, and a negative prompt when any step of the request
  // runs the unconditional branch.
  Branches(const Bundle& bundle, const TransformerSessions& sessions, const Request& request,
           const PromptEmbeds& embeds, Stream& stream);

  // In the stream's memory, of the request's latent shape: what the next run() sees.
  Tensor latents() const { return conditional_latent_; }
  // Likewise, the raw predictions of the branches that the last run() ran.
  Tensor conditional() const { return prediction_.rows(n_, 2 * n_); }
  Tensor unconditional() const { return prediction_.rows(0, n_); }
  Tensor degraded() const { return prediction_.rows(2 * n_, 3 * n_); }

  // Of an observed bundle, in the stream's memory: the output hidden_states [rows, T, C] or gate
  // [rows, C] of a block, of the rows that the last run() ran through it. Throws UsageError for
  // another bundle or block.
  Tensor told(const std::string& output, int block) const;

  // With the weights of one of the request's steps.
  void run(float timestep, const StepWeights& weights);

  std::int64_t base_rows = 0;  // counted over the calls
  std::int64_t forked_rows = 0;
  double network_seconds = 0;  // in the graphs

 private:
  void fill_rows(const PromptEmbeds& embeds);
  void fill_conditioned();
  void set_timestep(float timestep, bool unconditional);
  void observe();
  void add_text(const char* role, Tensor PromptEmbedding::* part, const PromptEmbeds& embeds);
  Tensor on_stream(const Tensor& host);
  void set_keep(float keep);
  std::size_t index(bool unconditional, bool degraded) const;
  void bind(bool unconditional, bool degraded);
  std::unique_ptr<BoundGraph> bind_base(bool unconditional) const;
  std::unique_ptr<BoundGraph> bind_degraded() const;
  std::unique_ptr<BoundGraph> bind_forked(bool unconditional, bool degraded);
  std::vector<Binding> inputs(const std::string& graph, std::int64_t first) const;
  std::vector<Binding> outputs(std::int64_t first, std::int64_t last) const;

  const Bundle& bundle_;
  const TransformerSessions& sessions_;
  const Request& request_;
  Stream& stream_;
  std::int64_t n_;
  std::optional<Conditioning> conditioning_;
  Tensor latent_;                                     // [2n, ...]: D_0, D_c
  Tensor timestep_;                                   // likewise, where nothing is conditioned
  std::vector<Tensor> modulation_;                    // else, a row for each of them
  Tensor unconditional_latent_, conditional_latent_;  // latent_'s halves
  Tensor prediction_;                                 // [3n, ...]: D_0, D_c, D_m
  Tensor keep_, degraded_keep_;                       // [3n, T], and its rows of D_m
  Tensor suppression_;                                // [T]
  std::map<std::string, Tensor> rows_;                // by role, [2n, ...]: D_0, D_c
  std::map<std::string, Tensor> shared_;              // by role, the same for every row
  std::map<std::string, Tensor> told_;  // by role, [2n, ...] or, after the fork, [3n, ...]
  std::int64_t first_ = 0, last_ = 0;   // rows of the last run() of the graph told_ is of
  float keep_value_ = -1;
  std::array<std::unique_ptr<BoundGraph>, 4> bound_;  // by index()
  std::unique_ptr<BoundGraph> bound_degraded_;        // layout dual
};

}  // namespace intaglio
