#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/flags.h"
#include "intaglio/backend.h"

namespace intaglio::cli {

namespace {

void print(const std::vector<DeviceStatus>& devices) {
  for (const DeviceStatus& status : devices) {
    std::printf("%-14s %-4s %s\n", status.device.c_str(), status.works ? "yes" : "no",
                status.details.c_str());
  }
}

void print_json(const std::vector<DeviceStatus>& devices) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const DeviceStatus& status : devices)
    list.push_back(
        {{"device", status.device}, {"works", status.works}, {"details", status.details}});
  std::printf("%s\n", list.dump(2).c_str());
}

}  // namespace

void add_devices(CLI::App& app) {
  struct Flags {
    BackendOptions backend;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("devices", "list the devices and whether each of them works here");
  command->footer(
      "It runs a graph of one node on every device. Where a device does not work, the line says "
      "why, and what would change that.\n"
      "Example: intaglio devices");
  add_onnxruntime_flag(*command, flags->backend);
  command->add_flag("--json", flags->json, "print JSON");
  command->callback([flags] {
    const auto devices = list_devices(flags->backend);
    flags->json ? print_json(devices) : print(devices);
  });
}

}  // namespace intaglio::cli
