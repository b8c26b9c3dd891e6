#pragma once

#include <cstddef>
#include <span>

namespace intaglio::platform {

// Maps an open file of at least one byte into memory, for reading. Returns an empty span where that
// fails, and errno says why.
std::span<char> map(int file, std::size_t bytes);
void unmap(std::span<char> mapped);

}  // namespace intaglio::platform
