#include "backend/loop_graphs.h"

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

// A branch's difference from D_c, and its cache.
std::string difference(GraphBuilder& graph, Row& row, const std::string& conditional,
                       const std::string& branch, const std::string& name, StepColumn fresh,
                       const StepForm& form, bool cached) {
  const std::string delta = graph.node("Sub", {conditional, branch});
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

}  // namespace

void build_gather(GraphBuilder& graph, const GatherForm& form) {
  Names latents, times, keeps;
  for (std::size_t i = 0; i < form.members; ++i) {
    const std::string n = std::to_string(i);
    latents.push_back(graph.input("x" + n, kFloat, form.rank));
    Row row(graph, "table" + n, graph.input("position" + n, kFloat, 1));
    if (form.modulation) {
      const std::string rows = graph.node(
          "Concat", {row.number(kUnconditionalRow), row.number(kConditionalRow)}, "axis", 0);
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
  std::string guided = conditional;
  const auto guide = [&](const std::string& from, const char* name, StepColumn weight,
                         StepColumn fresh, bool cached) {
    const std::string delta =
        difference(graph, row, conditional, branch(from, name), name, fresh, form, cached);
    guided = graph.node("Add", {guided, row.times(weight, delta)});
  };
  guide(prediction, "unconditional", kLambda, kUnconditionalFresh, form.unconditional_cache);
  if (form.scales_tokens) guided = scaled_tokens(graph, guided, conditional);
  guide(degraded_prediction, "degraded", kW, kDegradedFresh, form.degraded_cache);

  if (form.guided_cache) guided = guided_by_line(graph, row, guided, form.rank);

  const std::string x = latents("x");
  const std::string previous_denoised = latents("previous_denoised");
  const std::string previous_x = latents("previous_x");
  const std::string denoised =
      graph.node("Div", {graph.node("Sub", {x, row.times(kSigma, guided)}), row.number(kAlpha)},
                 "denoised_to");
  const std::string now = graph.node("Add", {row.times(kX, x), row.times(kDenoised, denoised)});
  const std::string before = graph.node(
      "Add", {row.times(kPreviousDenoised, previous_denoised), row.times(kPreviousX, previous_x)});
  graph.node("Add", {now, before}, "x_to");
  replace(graph, row, kKeepsDenoised, denoised, previous_denoised, "previous_denoised_to",
          form.rank);
  replace(graph, row, kKeepsX, x, previous_x, "previous_x_to", form.rank);
  for (const char* name : {"x_to", "denoised_to"}) graph.output(name, kFloat, form.rank);
  graph.node("Add", {position, graph.constant(1.0F)}, "position_to");
  graph.output("position_to", kFloat, 1);
}

}  // namespace intaglio
