#include "backend/loop_graphs.h"

#include <utility>

#include "core/rule_weights.h"
#include "core/step_table.h"

namespace intaglio {

namespace {

constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
using Names = GraphBuilder::Names;

std::string as_index(GraphBuilder& graph, const std::string& value) {
  return graph.node("Cast", {value}, "to", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
}

// The row of a table that comes next, [1, kStepColumns].
class Row {
 public:
  Row(GraphBuilder& graph, const std::string& table, const std::string& position)
      : graph_(graph),
        row_(graph.node("Gather", {graph.input(table, kFloat, 2), as_index(graph, position)})) {}

  // A number of the row, [1].
  std::string number(StepColumn column) {
    return graph_.node("Gather", {row_, graph_.indices({static_cast<std::int64_t>(column)}, true)},
                       "axis", 1);
  }
  std::string times(StepColumn column, const std::string& value) {
    return graph_.node("Mul", {number(column), value});
  }

 private:
  GraphBuilder& graph_;
  std::string row_;
};

// Puts the members' values one after the other.
std::string joined(GraphBuilder& graph, const Names& values) {
  return values.size() == 1 ? values.front() : graph.node("Concat", values, "axis", 0);
}

// Makes the output `as`: `by` where the number is 1, and `old` where it is 0.
void replace(GraphBuilder& graph, Row& row, StepColumn column, const std::string& by,
             const std::string& old, const std::string& as, std::size_t rank) {
  const std::string kept = graph.node("Sub", {graph.constant(1.0F), row.number(column)});
  graph.node("Add", {row.times(column, by), graph.node("Mul", {kept, old})}, as);
  graph.output(as, kFloat, rank);
}

// The sum of two tensors, with the numbers of this column and the next as weights.
std::string line(GraphBuilder& graph, Row& row, StepColumn column, const std::string& newer,
                 const std::string& older) {
  const auto next = static_cast<StepColumn>(column + 1);
  return graph.node("Add", {row.times(column, newer), row.times(next, older)});
}

// A branch's difference from D_c, multiplied by `mask` if there is one, and its cache.
std::string difference(GraphBuilder& graph, Row& row, const std::string& conditional,
                       const std::string& branch, const std::string& name, StepColumn fresh,
                       const StepForm& form, bool cached, const std::string& mask) {
  std::string delta = graph.node("Sub", {conditional, branch});
  if (!mask.empty()) delta = graph.node("Mul", {delta, mask});
  if (!cached) return delta;
  const std::string newer = graph.input("newer_" + name, kFloat, form.rank);
  const std::string older = graph.input("older_" + name, kFloat, form.rank);
  replace(graph, row, fresh, newer, older, "older_" + name + "_to", form.rank);
  replace(graph, row, fresh, delta, newer, "newer_" + name + "_to", form.rank);
  const std::string reused = line(graph, row, static_cast<StepColumn>(fresh + 1), newer, older);
  return graph.node("Add", {row.times(fresh, delta), reused});
}

// Scales each token, a row of the last axis, to its norm in D_c. Where CFG has no weight, both are
// equal and the factor is 1.
std::string scaled_tokens(GraphBuilder& graph, const std::string& guided,
                          const std::string& conditional) {
  const std::string last = graph.indices({-1});
  const auto sum_of_squares = [&](const std::string& value) {
    const std::string sum =
        graph.node("ReduceSum", {graph.node("Mul", {value, value}), last}, "keepdims", 1);
    return graph.node("Add", {sum, graph.constant(1e-30F)});  // keeps 0 / 0 out
  };
  const std::string ratio =
      graph.node("Div", {sum_of_squares(conditional), sum_of_squares(guided)});
  return graph.node("Mul", {guided, graph.node("Sqrt", {ratio})});
}

// A number of each image, or one for all of them, as a value of the graph.
class Scalar {
 public:
  Scalar(GraphBuilder& graph, std::string name) : graph_(&graph), name_(std::move(name)) {}
  const std::string& name() const { return name_; }

  friend Scalar operator+(const Scalar& a, const Scalar& b) { return a.with("Add", b); }
  friend Scalar operator-(const Scalar& a, const Scalar& b) { return a.with("Sub", b); }
  friend Scalar operator*(const Scalar& a, const Scalar& b) { return a.with("Mul", b); }
  friend Scalar operator/(const Scalar& a, const Scalar& b) { return a.with("Div", b); }
  friend Scalar operator+(const Scalar& a, double b) { return a + a.constant(b); }
  friend Scalar operator-(const Scalar& a, double b) { return a - a.constant(b); }
  friend Scalar operator-(double a, const Scalar& b) { return b.constant(a) - b; }
  friend Scalar operator*(double a, const Scalar& b) { return b.constant(a) * b; }
  friend Scalar min(double a, const Scalar& b) { return b.constant(a).with("Min", b); }
  friend Scalar sqrt(const Scalar& a) { return {*a.graph_, a.graph_->node("Sqrt", {a.name_})}; }
  friend Scalar abs(const Scalar& a) { return {*a.graph_, a.graph_->node("Abs", {a.name_})}; }
  friend Scalar exp(const Scalar& a) { return {*a.graph_, a.graph_->node("Exp", {a.name_})}; }

 private:
  Scalar with(const char* op, const Scalar& other) const {
    return {*graph_, graph_->node(op, {name_, other.name_})};
  }
  Scalar constant(double value) const {
    return {*graph_, graph_->constant(static_cast<float>(value))};
  }

  GraphBuilder* graph_;
  std::string name_;
};

// The sum of the product over each image, with all axes.
Scalar image_sum(GraphBuilder& graph, const std::string& a, const std::string& b,
                 std::size_t rank) {
  std::vector<std::int64_t> axes;
  for (std::size_t axis = 1; axis < rank; ++axis) axes.push_back(static_cast<std::int64_t>(axis));
  const std::string product = graph.node("Mul", {a, b});
  return {graph, graph.node("ReduceSum", {product, graph.indices(axes)}, "keepdims", 1)};
}

// Applies Correction of core/arithmetic.h.
std::string corrected(GraphBuilder& graph, Row& row, const StepForm& form, std::string guided,
                      const std::string& x) {
  if (form.previous) {
    const std::string before = graph.input("previous_guided", kFloat, form.rank);
    replace(graph, row, kKeepsGuided, guided, before, "previous_guided_to", form.rank);
    const std::string change = graph.node("Sub", {guided, before});
    guided = graph.node("Add", {guided, row.times(kPrev, change)});
  }
  if (!form.tag) return guided;
  const Scalar tag(graph, row.number(kTag));
  const Scalar weight =
      tag_weight(tag, image_sum(graph, guided, x, form.rank), image_sum(graph, x, x, form.rank));
  return graph.node(
      "Add", {graph.node("Mul", {tag.name(), guided}), graph.node("Mul", {weight.name(), x})});
}

// D without D_m's term, by a rule that needs sums over each image, as ImageRule of
// core/guided_step.cpp. `delta` is D_c - D_0.
class RuleGraph {
 public:
  RuleGraph(GraphBuilder& graph, Row& row, const StepForm& form)
      : graph_(graph), row_(row), form_(form), denoised_(form.rule == CfgRule::Kind::apg) {
    std::vector<std::int64_t> axes;
    for (std::size_t axis = 1; axis < form.rank; ++axis)
      axes.push_back(static_cast<std::int64_t>(axis));
    axes_ = graph.indices(axes);
  }

  std::string combined(const std::string& x, const std::string& conditional,
                       const std::string& delta) {
    const std::string p = denoised_ ? denoised(x, conditional) : conditional;
    const std::string q = difference(delta);
    const RuleNumbers<Scalar> numbers{.lambda = number(kLambda),
                                      .eta = number(kEta),
                                      .norm_threshold = number(kNormThreshold),
                                      .alpha = number(kRuleAlpha)};
    const RuleSums<Scalar> sums{.pp = sum(p, p), .pq = sum(p, q), .qq = sum(q, q)};
    const auto [a, b] = rule_weights(form_.rule, numbers, sums);
    std::string change =
        graph_.node("Add", {graph_.node("Mul", {a.name(), p}), graph_.node("Mul", {b.name(), q})});
    if (denoised_) change = graph_.node("Div", {change, row_.number(kSlope)});
    std::string guided = graph_.node("Add", {conditional, change});
    if (form_.rescales) guided = rescaled(guided, conditional);
    if (form_.normalizes) guided = normalized(guided, conditional);
    return form_.rule == CfgRule::Kind::cfg_zero ? row_.times(kUses, guided) : guided;
  }

 private:
  Scalar number(StepColumn column) { return {graph_, row_.number(column)}; }
  Scalar sum(const std::string& a, const std::string& b) {
    return image_sum(graph_, a, b, form_.rank);
  }
  Scalar variance(const std::string& value) {
    const std::string mean = graph_.node("ReduceMean", {value, axes_}, "keepdims", 1);
    const std::string centred = graph_.node("Sub", {value, mean});
    const std::string square = graph_.node("Mul", {centred, centred});
    return {graph_, graph_.node("ReduceMean", {square, axes_}, "keepdims", 1)};
  }
  std::string denoised(const std::string& x, const std::string& prediction) {
    const std::string scaled = graph_.node("Sub", {x, row_.times(kSigma, prediction)});
    return graph_.node("Div", {scaled, row_.number(kAlpha)});
  }
  std::string difference(const std::string& delta) {
    if (!denoised_) return delta;
    std::string q = row_.times(kSlope, delta);
    if (!form_.momentum) return q;
    const std::string before = graph_.input("momentum", kFloat, form_.rank);
    q = graph_.node("Add", {q, row_.times(kMomentum, before)});
    replace(graph_, row_, kKeepsMomentum, q, before, "momentum_to", form_.rank);
    return q;
  }
  std::string rescaled(const std::string& guided, const std::string& conditional) {
    const Scalar factor = rescale_factor(number(kRescale), variance(conditional), variance(guided));
    return graph_.node("Mul", {factor.name(), guided});
  }

  std::string normalized(const std::string& guided, const std::string& conditional) {
    const Scalar factor =
        norm_factor(number(kNormalization), sum(conditional, conditional), sum(guided, guided));
    return graph_.node("Mul", {factor.name(), guided});
  }

  GraphBuilder& graph_;
  Row& row_;
  const StepForm& form_;
  bool denoised_;  // whether the rule works on the clean data
  std::string axes_;
};

// The guided prediction of a request that skips steps, its cache, and the distance of each image
// from the line, as LineDistance of core/arithmetic.h.
std::string guided_by_line(GraphBuilder& graph, Row& row, const std::string& guided,
                           std::size_t rank) {
  const std::string newer = graph.input("newer_guided", kFloat, rank);
  const std::string older = graph.input("older_guided", kFloat, rank);
  const std::string on_line = line(graph, row, kLineNewer, newer, older);
  const std::string rows = graph.indices({0, -1}), last = graph.indices({1});
  const auto sum_of_squares = [&](const std::string& value) {
    const std::string flat = graph.node("Reshape", {value, rows});
    return graph.node("ReduceSum", {graph.node("Mul", {flat, flat}), last}, "keepdims", 0);
  };
  const std::string missed = sum_of_squares(graph.node("Sub", {guided, on_line}));
  // The small number keeps 0 / 0 out.
  const std::string whole = graph.node("Add", {sum_of_squares(guided), graph.constant(1e-30F)});
  graph.node("Sqrt", {graph.node("Div", {missed, whole})}, "distance");
  graph.output("distance", kFloat, 1);
  replace(graph, row, kMovesOn, newer, older, "older_guided_to", rank);
  replace(graph, row, kRuns, guided, newer, "newer_guided_to", rank);
  const std::string skips = graph.node("Sub", {graph.constant(1.0F), row.number(kRuns)});
  return graph.node("Add", {row.times(kRuns, guided), graph.node("Mul", {skips, on_line})});
}

// The values that samplers sum beside x.
struct SamplerNames {
  std::string denoised, previous_denoised, previous_x;
};

// Applies UnipcCorrector of core/arithmetic.h, and remembers one more prediction.
std::string corrected_x(GraphBuilder& graph, Row& row, const StepForm& form, const std::string& x,
                        const SamplerNames& memory) {
  const std::string older = graph.input("older_denoised", kFloat, form.rank);
  replace(graph, row, kKeepsDenoised, memory.previous_denoised, older, "older_denoised_to",
          form.rank);
  std::string sum = row.times(kCorrectedX, x);
  for (const std::string& part : {row.times(kCorrectedPreviousX, memory.previous_x),
                                  row.times(kCorrectedDenoised, memory.denoised),
                                  row.times(kCorrectedPreviousDenoised, memory.previous_denoised),
                                  row.times(kCorrectedOlderDenoised, older)})
    sum = graph.node("Add", {sum, part});
  return sum;
}

// Takes back what the step did to the picture outside the mask, as in core/guided_step.cpp.
void put_back(GraphBuilder& graph, Row& row, std::size_t rank, const std::string& x,
              const std::string& denoised) {
  const auto input = [&](const char* name) { return graph.input(name, kFloat, rank); };
  const std::string drawn = input("drawn"), clean = input("kept_clean");
  const std::string kept = graph.node("Sub", {graph.constant(1.0F), drawn});
  const auto blend = [&](const std::string& value, const std::string& picture, const char* as) {
    graph.node("Add", {graph.node("Mul", {drawn, value}), graph.node("Mul", {kept, picture})}, as);
  };
  const std::string noised =
      graph.node("Add", {row.times(kKeptClean, clean), row.times(kKeptNoise, input("kept_noise"))});
  blend(x, noised, "x_to");
  blend(denoised, clean, "denoised_to");
}

}  // namespace

void build_gather(GraphBuilder& graph, const GatherForm& form) {
  Names latents, times, keeps;
  for (std::size_t i = 0; i < form.members; ++i) {
    const std::string n = std::to_string(i);
    latents.push_back(graph.input("x" + n, kFloat, form.rank));
    Row row(graph, "table" + n, graph.input("position" + n, kFloat, 1));
    if (form.modulation) {
      const std::string rows = graph.node(
          "Concat",
          {row.number(kUnconditionalRow), row.number(kConditionalRow), row.number(kDegradedRow)},
          "axis", 0);
      times.push_back(
          graph.node("Gather", {graph.input("modulation" + n, kFloat, 2), as_index(graph, rows)}));
    } else {
      times.push_back(row.number(kTimestep));
    }
    if (!form.keep) continue;
    // keep = 1 - (1 - ma_keep) * token_mask, as keep_value of core/arithmetic.h
    const std::string one = graph.constant(1.0F);
    const std::string dropped = graph.node("Sub", {one, row.number(kMaKeep)});
    const std::string mask = graph.input("mask" + n, kFloat, 2);
    keeps.push_back(graph.node("Sub", {one, graph.node("Mul", {dropped, mask})}));
  }
  const auto rows = [&](const Names& values, const char* index, const char* name,
                        std::size_t rank) {
    graph.node("Gather", {joined(graph, values), graph.input(index, kInt64, 1)}, name);
    graph.output(name, kFloat, rank);
  };
  rows(latents, "images", "latent", form.rank);
  rows(times, "times", "time", form.modulation ? 2 : 1);
  if (!form.keep) return;
  keeps.push_back(graph.input("ones", kFloat, 2));
  rows(keeps, "keeps", "keep", 2);
}

void build_step(GraphBuilder& graph, const StepForm& form) {
  const std::string position = graph.input("position", kFloat, 1);
  Row row(graph, "table", position);
  const auto latents = [&](const char* name) { return graph.input(name, kFloat, form.rank); };
  const std::string prediction = latents("prediction");
  const std::string degraded_prediction = latents("degraded_prediction");
  const auto branch = [&](const std::string& from, const char* rows) {
    return graph.node("Gather", {from, graph.input(rows, kInt64, 1)});
  };
  const std::string conditional = branch(prediction, "conditional");
  const std::string x = latents("x");
  const auto delta = [&](const std::string& from, const char* name, StepColumn fresh, bool cached,
                         const std::string& mask = "") {
    return difference(graph, row, conditional, branch(from, name), name, fresh, form, cached, mask);
  };
  const std::string from_unconditional =
      delta(prediction, "unconditional", kUnconditionalFresh, form.unconditional_cache);
  std::string guided =
      form.needs_sums() ? RuleGraph(graph, row, form).combined(x, conditional, from_unconditional)
                        : graph.node("Add", {conditional, row.times(kLambda, from_unconditional)});
  if (form.scales_tokens) guided = scaled_tokens(graph, guided, conditional);
  const std::string from_degraded =
      delta(degraded_prediction, "degraded", kDegradedFresh, form.degraded_cache,
            form.term_mask ? latents("term_mask") : "");
  guided = graph.node("Add", {guided, row.times(kW, from_degraded)});
  guided = corrected(graph, row, form, guided, x);
  if (form.guided_cache) guided = guided_by_line(graph, row, guided, form.rank);

  const std::string previous_denoised = latents("previous_denoised");
  const std::string previous_x = latents("previous_x");
  const std::string denoised =
      graph.node("Div", {graph.node("Sub", {x, row.times(kSigma, guided)}), row.number(kAlpha)},
                 form.kept ? "" : "denoised_to");
  const SamplerNames memory{
      .denoised = denoised, .previous_denoised = previous_denoised, .previous_x = previous_x};
  const std::string from = form.corrects ? corrected_x(graph, row, form, x, memory) : x;
  const std::string now = graph.node("Add", {row.times(kX, from), row.times(kDenoised, denoised)});
  std::string before = graph.node(
      "Add", {row.times(kPreviousDenoised, previous_denoised), row.times(kPreviousX, previous_x)});
  if (form.noise) before = graph.node("Add", {before, row.times(kNoise, latents("noise"))});
  const std::string moved = graph.node("Add", {now, before}, form.kept ? "" : "x_to");
  if (form.kept) put_back(graph, row, form.rank, moved, denoised);
  for (const char* name : {"x_to", "denoised_to"}) graph.output(name, kFloat, form.rank);
  replace(graph, row, kKeepsDenoised, denoised, previous_denoised, "previous_denoised_to",
          form.rank);
  replace(graph, row, kKeepsX, from, previous_x, "previous_x_to", form.rank);
  graph.node("Add", {position, graph.constant(1.0F)}, "position_to");
  graph.output("position_to", kFloat, 1);
}

}  // namespace intaglio
