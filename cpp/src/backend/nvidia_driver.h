#pragma once

#include <string>

namespace intaglio {

// Returns why this machine has no usable NVIDIA GPU, as a part of a message, or an empty string
// when it has one. The driver is asked only once per process.
const std::string& gpu_unavailable_reason();

}  // namespace intaglio
