#pragma once

#include <memory>
#include <string>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"

namespace intaglio {

// The bundle's engines, on the GPU; `device` is tensorrt or tensorrt-rtx, whose library is loaded
// now. Throws UnavailableError for what is missing: the part of Intaglio that was not built, the
// library, a driver and a GPU, or engines for them.
std::shared_ptr<Backend> make_tensorrt_backend(const std::string& device,
                                               const BackendOptions& options, const Bundle& bundle);

}  // namespace intaglio
