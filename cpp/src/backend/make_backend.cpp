#include <algorithm>
#include <system_error>

#include "backend/nvidia_driver.h"
#include "backend/onnxruntime_backend.h"
#include "backend/onnxruntime_library.h"
#include "backend/onnxruntime_providers.h"
#include "backend/tensorrt_backend.h"
#include "intaglio/backend.h"
#include "intaglio/error.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

bool is_tensorrt(const std::string& device) {
  return device == "tensorrt" || device == "tensorrt-rtx";
}

std::shared_ptr<Backend> make(const std::string& device, const BackendOptions& options,
                              const Bundle& bundle) {
  auto backend = is_tensorrt(device) ? make_tensorrt_backend(device, options, bundle)
                                     : make_onnxruntime_backend(device, options, bundle);
  backend->choice.device = device;
  return backend;
}

// Whether a folder <device>-<targets>-<precision>-<key> lies in engines/.
bool has_engines(const Bundle& bundle, const std::string& device) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(bundle.folder / "engines", error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(device + "-sm") && fs::exists(entry.path() / "engine.json", error))
      return true;
  }
  return false;
}

// Whether somebody meant to use `device` here, so that its failure is no matter of course.
bool is_meant(const std::string& device) {
  return is_tensorrt(device) || why_no_gpu().empty() || has_provider(device);
}

void add(std::string& list, const std::string& text) { list += (list.empty() ? "" : "; ") + text; }

// A backend that says why it was chosen.
class Explained final : public Backend {
 public:
  Explained(std::shared_ptr<Backend> backend, DeviceChoice why) : backend_(std::move(backend)) {
    choice = std::move(why);
  }
  std::unique_ptr<Session> load(const fs::path& bundle_root, const Graph& graph) const override {
    return backend_->load(bundle_root, graph);
  }
  std::unique_ptr<Stream> make_stream() const override { return backend_->make_stream(); }
  std::string description() const override {
    return backend_->description() + "; auto: " + choice.device + ", since " + choice.note;
  }

 private:
  std::shared_ptr<Backend> backend_;
};

std::shared_ptr<Backend> choose(const BackendOptions& options, const Bundle& bundle) {
  DeviceChoice choice;
  const auto chosen = [&](const std::string& device) -> std::shared_ptr<Backend> {
    auto backend = make(device, options, bundle);
    choice.device = device;
    backend->choice = choice;
    if (choice.note.empty()) return backend;
    return std::make_shared<Explained>(std::move(backend), choice);
  };
  load_onnxruntime(options.onnxruntime_library);
  for (const std::string device : {"tensorrt-rtx", "tensorrt", "cuda"}) {
    if (is_tensorrt(device) && !has_engines(bundle, device)) {
      add(choice.reason, device + ": the bundle has no engines for it");
      continue;
    }
    try {
      return chosen(device);
    } catch (const UnavailableError& error) {
      const std::string what = error.what();
      const bool named = what.find(device) != std::string::npos;
      const std::string why = named ? what : device + ": " + what;
      add(choice.reason, why);
      if (is_meant(device)) add(choice.note, why);
    }
  }
  return chosen("cpu");
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
  return options.device == "auto" ? choose(options, bundle) : make(options.device, options, bundle);
}

}  // namespace intaglio
