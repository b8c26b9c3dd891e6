#include "backend/device_name.h"

#include <algorithm>
#include <set>

#include "intaglio/backend.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

[[noreturn]] void refuse(const std::string& device, const std::string& why) {
  throw UsageError("there is no device \"" + device + "\": " + why);
}

bool is_index(const std::string& text) {
  return !text.empty() && text.size() <= 3 &&
         std::ranges::all_of(text, [](char letter) { return letter >= '0' && letter <= '9'; });
}

}  // namespace

const std::vector<std::string>& device_names() {
  static const std::vector<std::string> names{"auto",     "cpu",          "openvino", "cuda",
                                              "tensorrt", "tensorrt-rtx", "webgpu"};
  return names;
}

DeviceName parse_device(const std::string& device) {
  const std::size_t colon = device.find(':');
  DeviceName parsed{.kind = device.substr(0, colon),
                    .which = colon == std::string::npos ? "" : device.substr(colon + 1)};
  if (parsed.kind == "ort-tensorrt") refuse(device, "it is called tensorrt now");
  if (std::ranges::find(device_names(), parsed.kind) == device_names().end()) {
    std::string names;
    for (const std::string& name : device_names()) names += (names.empty() ? "" : ", ") + name;
    refuse(device, "--device is one of " + names);
  }
  if (colon == std::string::npos) {
    if (parsed.kind == "openvino") parsed.which = "cpu";
    return parsed;
  }
  if (parsed.kind == "auto" || parsed.kind == "cpu")
    refuse(device, "there is only one " + parsed.kind);
  if (parsed.kind == "webgpu") refuse(device, "WebGPU chooses the GPU itself: use --device webgpu");
  if (parsed.kind == "openvino") {
    static const std::set<std::string> kinds{"cpu", "gpu", "npu"};
    if (!kinds.contains(parsed.which))
      refuse(device, "OpenVINO's devices are openvino:cpu, openvino:gpu and openvino:npu");
  } else if (!is_index(parsed.which)) {
    refuse(device, "a card is chosen by its number, as in " + parsed.kind + ":0");
  }
  return parsed;
}

std::string to_string(const DeviceName& device) {
  return device.kind + (device.which.empty() ? "" : ":" + device.which);
}

int card_of(const DeviceName& device) { return device.which.empty() ? 0 : std::stoi(device.which); }

}  // namespace intaglio
