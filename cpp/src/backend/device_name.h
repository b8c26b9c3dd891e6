// Names of devices: a kind, and which of that kind, as in "openvino:gpu" or "cuda:1".
#pragma once

#include <string>

namespace intaglio {

struct DeviceName {
  std::string kind;        // one of device_names() without what follows a colon
  std::string which = {};  // a card's number, or OpenVINO's cpu, gpu or npu; empty: the first
};

// Throws UsageError that lists the names when there is no such device.
DeviceName parse_device(const std::string& device);

std::string to_string(const DeviceName& device);

// Returns the number of an NVIDIA card, which is 0 unless the name has another one.
int card_of(const DeviceName& device);

}  // namespace intaglio
