#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "backend/device_memory.h"
#include "backend/ort_api.h"

namespace intaglio {

// Returns the memory of the provider that the sessions of `make_options` have, or null where it is
// the host's. The lock of `lock_use` is held while the provider opens or runs a session.
std::shared_ptr<DeviceMemory> make_provider_memory(
    const Ort::Env& environment, const std::string& device,
    std::function<Ort::SessionOptions()> make_options,
    std::function<std::unique_lock<std::mutex>()> lock_use);

}  // namespace intaglio
