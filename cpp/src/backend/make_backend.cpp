#include <algorithm>
#include <utility>

#include "backend/nvidia_driver.h"
#include "backend/onnxruntime_backend.h"
#include "backend/onnxruntime_library.h"
#include "backend/onnxruntime_providers.h"
#include "bundle/engines.h"
#include "intaglio/backend.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

bool is_tensorrt(const std::string& device) {
  return device == "tensorrt" || device == "tensorrt-rtx";
}

[[noreturn]] void refuse_engines(const std::string& device) {
  throw UnavailableError("device " + device +
                         " cannot run in this version of Intaglio, which builds TensorRT engines "
                         "but does not run them yet: use --device cpu or cuda");
}

std::shared_ptr<Backend> chosen(const std::string& device, const BackendOptions& options,
                                const Bundle& bundle, DeviceChoice choice) {
  if (is_tensorrt(device)) refuse_engines(device);
  auto backend = make_onnxruntime_backend(device, options, bundle);
  choice.device = device;
  backend->choice = std::move(choice);
  return backend;
}

void add(std::string& list, const std::string& text) { list += (list.empty() ? "" : "; ") + text; }

std::shared_ptr<Backend> choose(const BackendOptions& options, const Bundle& bundle) {
  DeviceChoice choice;
  if (!bundle.quantized.empty()) {
    choice.reason = "the bundle's " + bundle.quantized + " weights are for the CPU";
    return chosen("cpu", options, bundle, choice);
  }
  for (const std::string device : {"tensorrt-rtx", "tensorrt"}) {
    const bool built = has_engines(bundle, device);
    const std::string why = built ? "engines cannot be run yet" : "the bundle has no engines for it";
    add(choice.reason, device + ": " + why);
    if (built) add(choice.note, device + ": " + why);
  }
  load_onnxruntime(options.onnxruntime_library);
  try {
    return chosen("cuda", options, bundle, choice);
  } catch (const UnavailableError& error) {
    add(choice.reason, error.what());
    // With a GPU, or a library made for one, somebody meant to use it.
    if (why_no_gpu().empty() || has_provider("cuda")) add(choice.note, error.what());
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
