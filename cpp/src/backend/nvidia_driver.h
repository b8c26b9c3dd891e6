#pragma once

#include <string>

namespace intaglio {

// Returns why this machine has no usable NVIDIA GPU with the number `card`, as a part of a message,
// or an empty string when it has one. The driver is asked only once per process.
std::string gpu_unavailable_reason(int card = 0);

// Returns the compute capability of a GPU, "sm89"; empty when the driver does not tell.
std::string gpu_architecture(int card);

}  // namespace intaglio
