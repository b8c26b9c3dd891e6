#include "backend/graph_form.h"

#include <optional>

namespace intaglio {

const std::string& form_for(const DeviceName& device, const Graph& graph) {
  const std::optional<std::string>* form = nullptr;
  if (device.kind == "cpu") form = &graph.cpu;
  // On WebGPU an Attention would run on the CPU and copy its inputs from the device.
  if (device.kind == "openvino" || device.kind == "webgpu") form = &graph.decomposed;
  return form && *form ? **form : graph.path;
}

}  // namespace intaglio
