// The parts of ONNX Runtime that exist once per process: its environment, our operators, and its
// execution providers for GPUs.
#pragma once

#include <filesystem>
#include <string>

#include "backend/onnxruntime_library.h"
#include "backend/ort_api.h"

namespace intaglio {

// Returns the environment of this process, which it creates in the first call.
Ort::Env& onnxruntime_environment();

// Registers the operators of `ops_library` with ONNX Runtime, once per process. The first session
// that uses the operators adds their domain to a table without a lock, so this function opens such
// a session before several threads can.
void register_ops(const std::filesystem::path& ops_library);

// Whether the loaded library was built with the provider of `device`: cuda or ort-tensorrt.
bool has_provider(const std::string& device);

// Opens a graph of one node with the provider of `device`. Throws UnavailableError that says the
// cause when this fails: no such provider, no driver, or missing libraries of CUDA or TensorRT.
void check_provider(const std::string& device, const OnnxRuntimeLibrary& library);

// Adds the providers of `device` to a session's options. ort-tensorrt stores the engines of
// `graph`, the path of a graph in its bundle, in the folder `cache`, or nowhere when `cache` is
// empty.
void add_provider(Ort::SessionOptions& options, const std::string& device,
                  const std::filesystem::path& cache, const std::string& graph);

}  // namespace intaglio
