// How a session is told to use the providers of ONNX Runtime's build for NVIDIA cards.
#pragma once

#include <filesystem>
#include <string>

#include "backend/device_name.h"
#include "backend/ort_api.h"

namespace intaglio {

// Adds the provider that runs on the card of that number.
void add_cuda(Ort::SessionOptions& options, const std::string& card);

// The same with TensorRT. It stores the engines of `graph`, the path of a graph in its bundle, in
// the folder `cache`, or nowhere when `cache` is empty.
void add_tensorrt(Ort::SessionOptions& options, const std::string& card,
                  const std::filesystem::path& cache, const std::string& graph);

}  // namespace intaglio
