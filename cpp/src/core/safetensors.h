// Reads and writes Hugging Face's safetensors format: the length of the header, the header as JSON,
// and the data.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "intaglio/tensor.h"

namespace intaglio {

using NamedTensors = std::map<std::string, Tensor>;

// Loads tensors of F32, F16, BF16, BOOL and I64 (diffusers' attention masks are I64), all as
// float32. Throws InputError naming the file when it is missing, damaged or holds another type.
NamedTensors load_safetensors(const std::filesystem::path& path);
// Saves float32 tensors. The file is written under a temporary name and then renamed. Throws
// InputError naming the file when it cannot be written or a tensor has another type.
void save_safetensors(const std::filesystem::path& path, const NamedTensors& tensors);

}  // namespace intaglio
