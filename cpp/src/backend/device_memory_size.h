#pragma once

#include <cstdint>
#include <string>

namespace intaglio {

// Returns the size of the memory of a device that works, or 0 where nobody says.
std::uint64_t device_memory_bytes(const std::string& device);

}  // namespace intaglio
