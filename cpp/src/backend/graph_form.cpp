#include "backend/graph_form.h"

#include <optional>

namespace intaglio {

const std::string& form_for(const DeviceName& device, const Graph& graph) {
  const std::optional<std::string>* form = nullptr;
  if (device.kind == "cpu") form = &graph.cpu;
  if (device.kind == "openvino") form = &graph.decomposed;
  return form && *form ? **form : graph.path;
}

}  // namespace intaglio
