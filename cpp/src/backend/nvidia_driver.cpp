#include "backend/nvidia_driver.h"

#include <array>
#include <cctype>

#include "platform/shared_library.h"

namespace intaglio {

namespace {

struct Driver {
  std::string reason;  // why there is no GPU; empty when there is one
  std::vector<NvidiaCard> cards = {};
};

// A function of a library's C interface, all of which return a code that is 0 for success. Calling
// one that the library does not have fails.
template <typename... Arguments>
class Function {
 public:
  Function(void* library, const char* name)
      : function_(reinterpret_cast<int (*)(Arguments...)>(platform::find_function(library, name))) {
  }
  explicit operator bool() const { return function_ != nullptr; }
  int operator()(Arguments... arguments) const { return function_ ? function_(arguments...) : -1; }

 private:
  int (*function_)(Arguments...);
};

NvidiaCard describe_card(void* driver, int number) {
  int handle = 0;
  std::array<char, 256> text{};
  std::size_t bytes = 0;
  NvidiaCard card;
  if (Function<int*, int>(driver, "cuDeviceGet")(&handle, number) != 0) return card;
  if (Function<char*, int, int>(driver, "cuDeviceGetName")(text.data(), text.size() - 1, handle) ==
      0)
    card.name = text.data();
  if (Function<std::size_t*, int>(driver, "cuDeviceTotalMem_v2")(&bytes, handle) == 0)
    card.memory_bytes = bytes;
  if (Function<char*, int, int>(driver, "cuDeviceGetPCIBusId")(text.data(), text.size() - 1,
                                                               handle) == 0)
    card.pci_bus_id = text.data();
  for (char& letter : card.pci_bus_id)
    letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  return card;
}

Driver query_driver() {
  const std::string name = platform::kNvidiaDriver;
  void* driver = platform::load_library(name);  // never closed, because it may be in use
  if (!driver) return {.reason = "there is no NVIDIA driver (" + name + ")"};
  const Function<unsigned> init(driver, "cuInit");
  const Function<int*> count(driver, "cuDeviceGetCount");
  const Function<int, const char**> error_text(driver, "cuGetErrorString");
  if (!init || !count || !error_text) return {.reason = name + " is not an NVIDIA driver"};
  int gpus = 0;
  int error = init(0);
  if (error == 0) error = count(&gpus);
  if (error != 0) {
    const char* text = nullptr;
    error_text(error, &text);
    return {.reason = "the NVIDIA driver reports: " +
                      (text ? std::string(text) : "error " + std::to_string(error))};
  }
  Driver found{.reason = gpus > 0 ? "" : "the NVIDIA driver finds no GPU"};
  for (int number = 0; number < gpus; ++number)
    found.cards.push_back(describe_card(driver, number));
  return found;
}

const Driver& driver() {
  static const Driver found = query_driver();
  return found;
}

// Asks NVML, which comes with the driver. CUDA's interface only says which CUDA the driver is for.
std::string query_version() {
  void* nvml = platform::load_library(platform::kNvidiaManagement);
  if (!nvml || Function<>(nvml, "nvmlInit_v2")() != 0) return "";
  std::array<char, 96> text{};
  const Function<char*, unsigned> version(nvml, "nvmlSystemGetDriverVersion");
  return version(text.data(), static_cast<unsigned>(text.size() - 1)) == 0 ? text.data() : "";
}

// Values of CUdevice_attribute for the compute capability.
constexpr int kMajor = 75, kMinor = 76;

}  // namespace

const std::vector<NvidiaCard>& nvidia_cards() { return driver().cards; }

const std::string& nvidia_driver_version() {
  static const std::string version = query_version();
  return version;
}

std::string gpu_architecture(int card) {
  if (!gpu_unavailable_reason(card).empty()) return {};
  void* driver = platform::loaded_library(platform::kNvidiaDriver);
  if (!driver) return {};
  const Function<int*, int, int> attribute(driver, "cuDeviceGetAttribute");
  int major = 0, minor = 0;
  if (attribute(&major, kMajor, card) || attribute(&minor, kMinor, card)) return {};
  return "sm" + std::to_string(major) + std::to_string(minor);
}

std::string gpu_unavailable_reason(int card) {
  const std::size_t gpus = driver().cards.size();
  if (!driver().reason.empty() || static_cast<std::size_t>(card) < gpus) return driver().reason;
  return "the NVIDIA driver finds " + std::to_string(gpus) + (gpus == 1 ? " GPU" : " GPUs") +
         ", numbered from 0";
}

}  // namespace intaglio
