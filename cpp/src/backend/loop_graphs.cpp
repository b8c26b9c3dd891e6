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
    return graph_.node("Gather", {row_, graph_.constant({static_cast<std::int64_t>(column)}, true)},
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

// A branch's difference from D_c, and its cache.
std::string difference(GraphBuilder& graph, Row& row, const std::string& conditional,
                       const std::string& branch, const std::string& name, StepColumn fresh_column,
                       const StepForm& form, bool cached) {
  const std::string delta = graph.node("Sub", {conditional, branch});
  if (!cached) return delta;
  const auto column = [&](std::size_t offset) {
    return static_cast<StepColumn>(fresh_column + offset);
  };
  const std::string newer = graph.input("newer_" + name, kFloat, form.rank);
  const std::string older = graph.input("older_" + name, kFloat, form.rank);
  const std::string fresh = row.number(fresh_column);
  const std::string kept = graph.node("Sub", {graph.constant(1.0F), fresh});
  const auto replace = [&](const std::string& by, const std::string& old, const std::string& as) {
    graph.node("Add", {graph.node("Mul", {fresh, by}), graph.node("Mul", {kept, old})}, as);
    graph.output(as, kFloat, form.rank);
  };
  replace(newer, older, "older_" + name + "_to");
  replace(delta, newer, "newer_" + name + "_to");
  return graph.node(
      "Add", {row.times(column(0), delta),
              graph.node("Add", {row.times(column(1), newer), row.times(column(2), older)})});
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
  guide(degraded_prediction, "degraded", kW, kDegradedFresh, form.degraded_cache);

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
  const auto remember = [&](StepColumn column, const std::string& value, const std::string& old,
                            const char* name) {
    const std::string kept = graph.node("Sub", {graph.constant(1.0F), row.number(column)});
    graph.node("Add", {row.times(column, value), graph.node("Mul", {kept, old})}, name);
  };
  remember(kKeepsDenoised, denoised, previous_denoised, "previous_denoised_to");
  remember(kKeepsX, x, previous_x, "previous_x_to");
  for (const char* name : {"x_to", "denoised_to", "previous_denoised_to", "previous_x_to"})
    graph.output(name, kFloat, form.rank);
  graph.node("Add", {position, graph.constant(1.0F)}, "position_to");
  graph.output("position_to", kFloat, 1);
}

}  // namespace intaglio
