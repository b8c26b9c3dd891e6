#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/flags.h"
#include "cli/help_formatter.h"
#include "intaglio/backend.h"

namespace intaglio::cli {

namespace {

void print(const std::vector<DeviceStatus>& devices) {
  for (const DeviceStatus& status : devices) {
    std::printf("%-14s %-4s %s\n", status.device.c_str(), status.works ? "yes" : "no",
                one_line(status.details).c_str());
  }
}

void print_json(const std::vector<DeviceStatus>& devices) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const DeviceStatus& status : devices)
    list.push_back(
        {{"device", status.device}, {"works", status.works}, {"details", status.details}});
  // The path of a library may not be UTF-8, which JSON cannot hold.
  const auto replace = nlohmann::ordered_json::error_handler_t::replace;
  std::printf("%s\n", list.dump(2, ' ', false, replace).c_str());
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
  command->add_flag("--json", flags->json, "print JSON")->group("Output");
  move_help_flag_to_end(*command);
  command->callback([flags] {
    const auto devices = list_devices(flags->backend);
    if (flags->json) {
      print_json(devices);
    } else {
      print(devices);
    }
  });
}

}  // namespace intaglio::cli
