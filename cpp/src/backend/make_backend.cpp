#include <algorithm>
#include <utility>

#include "backend/nvidia_driver.h"
#include "backend/onnxruntime_backend.h"
#include "backend/onnxruntime_library.h"
#include "backend/onnxruntime_providers.h"
#include "backend/tensorrt_backend.h"
#include "bundle/engines.h"
#include "intaglio/backend.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

bool is_tensorrt(const std::string& device) {
  return device == "tensorrt" || device == "tensorrt-rtx";
}

std::shared_ptr<Backend> chosen(const std::string& device, const BackendOptions& options,
                                const Bundle& bundle, DeviceChoice choice) {
  auto backend = is_tensorrt(device) ? make_tensorrt_backend(device, options, bundle)
                                     : make_onnxruntime_backend(device, options, bundle);
  choice.device = device;
  backend->choice = std::move(choice);
  return backend;
}

// Whether somebody meant to use `device` here, so that its failure is no matter of course.
bool is_meant(const std::string& device) {
  return is_tensorrt(device) || why_no_gpu().empty() || has_provider(device);
}

void add(std::string& list, const std::string& text) { list += (list.empty() ? "" : "; ") + text; }

std::shared_ptr<Backend> choose(const BackendOptions& options, const Bundle& bundle) {
  DeviceChoice choice;
  if (!bundle.quantized.empty()) {
    choice.reason = "the bundle's " + bundle.quantized + " weights are for the CPU";
    return chosen("cpu", options, bundle, choice);
  }
  for (const std::string device : {"tensorrt-rtx", "tensorrt", "cuda"}) {
    if (is_tensorrt(device) && !has_engines(bundle, device)) {
      add(choice.reason, device + ": the bundle has no engines for it");
      continue;
    }
    // Not before: engines run without it.
    if (!is_tensorrt(device)) load_onnxruntime(options.onnxruntime_library);
    try {
      return chosen(device, options, bundle, choice);
    } catch (const UnavailableError& error) {
      const std::string what = error.what();
      const bool named = what.find(device) != std::string::npos;
      const std::string why = named ? what : device + ": " + what;
      add(choice.reason, why);
      if (is_meant(device)) add(choice.note, why);
    }
  }
  return chosen("cpu", options, bundle, choice);
}

}  // namespace

const std::vector<std::string>& device_names() {
  static const std::vector<std::string> names{"auto",         "cpu",      "cuda",
                                              "ort-tensorrt", "tensorrt", "tensorrt-rtx"};
  return names;
}

std::shared_ptr<Backend> make_backend(const BackendOptions& options, const Bundle& bundle) {
  if (options.threads < 0 || options.threads > 1024) {
    throw UsageError("--threads must be from 0 (one per core) to 1024");
  }
  if (std::ranges::find(device_names(), options.device) == device_names().end()) {
    std::string known;
    for (const std::string& name : device_names()) known += (known.empty() ? "" : ", ") + name;
    throw UsageError("there is no device \"" + options.device + "\": --device is one of " + known);
  }
  return options.device == "auto" ? choose(options, bundle)
                                  : chosen(options.device, options, bundle, {});
}

}  // namespace intaglio
