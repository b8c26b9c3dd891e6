// How much memory this process may still take.
#pragma once

#include <cstdint>

namespace intaglio {

// Returns the bytes that are free on the machine, but no more than the limits of the process and of
// its control groups allow; 0 where the system does not say.
std::uint64_t usable_memory();

}  // namespace intaglio
