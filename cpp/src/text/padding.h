#pragma once

#include <cstdint>
#include <vector>

#include "intaglio/tokenizer.h"

namespace intaglio {

// Cuts `ids` to leave room for the end token, appends it, and pads the result to `length`, which
// must be at least 1.
Tokens end_and_pad(std::vector<std::int64_t> ids, std::int64_t eos, std::int64_t pad, int length);

}  // namespace intaglio
