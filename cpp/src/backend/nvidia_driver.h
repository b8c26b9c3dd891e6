// What NVIDIA's driver says of this machine. Its libraries are loaded when they are first asked, so
// that building and running without them works. The driver is asked only once per process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace intaglio {

struct NvidiaCard {
  std::string name;                // "NVIDIA H200"
  std::uint64_t memory_bytes = 0;  // all of its memory
  std::string pci_bus_id;          // "0000:65:00.0"
};

// Returns the cards that CUDA can use, by their number.
const std::vector<NvidiaCard>& nvidia_cards();

// Returns the version of the driver, such as "580.65.06", or an empty string.
const std::string& nvidia_driver_version();

// Returns why this machine has no usable NVIDIA GPU with the number `card`, as a part of a message,
// or an empty string when it has one.
std::string gpu_unavailable_reason(int card = 0);

// Returns the compute capability of a GPU, "sm89"; empty when the driver does not tell.
std::string gpu_architecture(int card);

}  // namespace intaglio
