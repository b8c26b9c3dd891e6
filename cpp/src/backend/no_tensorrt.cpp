// Stands in where Intaglio is built without TensorRT.
#include "backend/tensorrt_backend.h"
#include "intaglio/error.h"

namespace intaglio {

bool built_with_tensorrt() { return false; }

std::shared_ptr<Backend> make_tensorrt_backend(const std::string& device, const BackendOptions&,
                                               const Bundle&) {
  throw UnavailableError("device \"" + device +
                         "\" is not in this build of Intaglio: install one that has it, with "
                         "`pip install . -C cmake.define.INTAGLIO_TENSORRT=ON` from its sources "
                         "(docs/tensorrt.md)");
}

}  // namespace intaglio
