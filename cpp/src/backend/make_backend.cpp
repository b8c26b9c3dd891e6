#include "backend/onnxruntime_backend.h"
#include "backend/tensorrt_backend.h"
#include "intaglio/backend.h"
#include "intaglio/error.h"

namespace intaglio {

std::shared_ptr<Backend> make_backend(const BackendOptions& options, const Bundle& bundle) {
  if (options.threads < 0 || options.threads > 1024) {
    throw UsageError("--threads must be from 0 (one per core) to 1024");
  }
  if (options.device == "tensorrt" || options.device == "tensorrt-rtx")
    return make_tensorrt_backend(options.device, options, bundle);
  if (options.device != "cpu" && options.device != "auto") {
    throw UnavailableError("device \"" + options.device +
                           "\" is not in this version: use --device cpu");
  }
  return make_onnxruntime_backend(options);
}

}  // namespace intaglio
