#pragma once

#include <string>

namespace intaglio {

// Why no NVIDIA GPU can be used here, for people; empty where one can.
const std::string& why_no_gpu();

}  // namespace intaglio
