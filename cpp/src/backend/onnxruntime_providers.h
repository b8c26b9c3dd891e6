// What ONNX Runtime holds once per process: its environment, our operators, its providers for GPUs
// (whether they work here, and their options).
#pragma once

#include <filesystem>
#include <string>

#include "backend/onnxruntime_library.h"
#include "backend/ort_api.h"

namespace intaglio {

// ONNX Runtime has one environment per process.
Ort::Env& onnxruntime_environment();

// Makes the operators of `ops_library` known to ONNX Runtime, once per process. The first session
// that has them enters their domain into a table that nothing locks, so it must not be one of
// several that are opened at once.
void register_ops(const std::filesystem::path& ops_library);

// Whether the loaded library was built with the provider of `device`: cuda or ort-tensorrt.
bool has_provider(const std::string& device);

// Opens a graph of one node with the provider of `device`. Throws UnavailableError with the cause
// when that does not work: no such provider, no driver, CUDA's or TensorRT's libraries missing.
void check_provider(const std::string& device, const OnnxRuntimeLibrary& library);

// Sets what sessions of `device` need. `graph` is the path of a graph in its bundle, whose
// engines ort-tensorrt keeps in `cache`; none are kept where that is empty.
void add_provider(Ort::SessionOptions& options, const std::string& device,
                  const std::filesystem::path& cache, const std::string& graph);

}  // namespace intaglio
