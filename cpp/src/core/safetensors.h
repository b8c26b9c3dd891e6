// Hugging Face's safetensors: a header's length, the header as JSON, the data.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "intaglio/tensor.h"

namespace intaglio {

using NamedTensors = std::map<std::string, Tensor>;

// F32, F16, BF16 and I64 (attention masks are that in diffusers), all as float32. Throws InputError
// naming the file when it is missing, damaged or holds another type.
NamedTensors load_safetensors(const std::filesystem::path& path);
// float32 tensors. Written under a temporary name, then renamed.
void save_safetensors(const std::filesystem::path& path, const NamedTensors& tensors);

}  // namespace intaglio
