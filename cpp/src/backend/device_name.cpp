#include "backend/device_name.h"

#include <algorithm>

#include "core/nearest.h"
#include "intaglio/backend.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

[[noreturn]] void refuse(const std::string& device, const std::string& why,
                         const std::string& meant = "") {
  throw UsageError("there is no device \"" + device + "\"" + meant + ": " + why);
}

bool is_index(const std::string& text) {
  return !text.empty() && text.size() <= 3 &&
         std::ranges::all_of(text, [](char letter) { return letter >= '0' && letter <= '9'; });
}

}  // namespace

const std::vector<std::string>& device_names() {
  static const std::vector<std::string> names{"auto",         "cpu",          "openvino:cpu",
                                              "openvino:gpu", "openvino:npu", "cuda",
                                              "tensorrt",     "tensorrt-rtx", "webgpu"};
  return names;
}

DeviceName parse_device(const std::string& device) {
  const std::size_t colon = device.find(':');
  DeviceName parsed{.kind = device.substr(0, colon),
                    .which = colon == std::string::npos ? "" : device.substr(colon + 1)};
  if (parsed.kind == "ort-tensorrt") refuse(device, "it is called tensorrt now");
  const auto is_kind = [&](const std::string& name) {
    return name.substr(0, name.find(':')) == parsed.kind;
  };
  if (std::ranges::none_of(device_names(), is_kind)) {
    std::string names;
    for (const std::string& name : device_names()) names += (names.empty() ? "" : ", ") + name;
    refuse(device, "--device is one of " + names, did_you_mean(device, device_names()));
  }
  if (colon == std::string::npos) {
    if (parsed.kind == "openvino") parsed.which = "cpu";
    return parsed;
  }
  if (parsed.kind == "auto" || parsed.kind == "cpu")
    refuse(device, "there is only one " + parsed.kind);
  if (parsed.kind == "webgpu") refuse(device, "WebGPU chooses the GPU itself: use --device webgpu");
  if (parsed.kind == "openvino") {
    if (!std::ranges::count(device_names(), device))
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
