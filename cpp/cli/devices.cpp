#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/flags.h"
#include "cli/help_formatter.h"
#include "intaglio/backend.h"

namespace intaglio::cli {

namespace {

constexpr std::size_t kWidth = 80, kIndent = 20;

// Prints a text in lines that end before column 80, the first one where the cursor is.
void print_wrapped(const std::string& text) {
  std::size_t column = kIndent;
  std::istringstream words(one_line(text));
  for (std::string word; words >> word;) {
    if (column > kIndent && column + 1 + word.size() >= kWidth) {
      std::printf("\n%*s", static_cast<int>(kIndent), "");
      column = kIndent;
    }
    std::printf("%s%s", column > kIndent ? " " : "", word.c_str());
    column += word.size() + (column > kIndent ? 1 : 0);
  }
  std::printf("\n");
}

void print_more(const std::string& text) {
  if (text.empty()) return;
  std::printf("%*s", static_cast<int>(kIndent), "");
  print_wrapped(text);
}

// Describes the card: "NVIDIA H200, 140 GiB, driver 580.65.06".
std::string hardware(const DeviceStatus& status) {
  std::string text = status.card;
  const auto append = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  constexpr std::uint64_t gib = 1ULL << 30U;
  if (status.memory_bytes) append(std::to_string((status.memory_bytes + gib / 2) / gib) + " GiB");
  if (!status.driver.empty()) append("driver " + status.driver);
  return text;
}

void print(const std::vector<DeviceStatus>& devices) {
  for (const DeviceStatus& status : devices) {
    std::printf("%-15s%-5s", status.device.c_str(), status.works ? "yes" : "no");
    print_wrapped(status.works ? status.runtime : status.reason);
    print_more(status.works ? hardware(status) : status.remedy);
  }
}

void print_json(const std::vector<DeviceStatus>& devices) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const DeviceStatus& status : devices) {
    list.push_back({{"device", status.device},
                    {"works", status.works},
                    {"runtime", status.runtime},
                    {"card", status.card},
                    {"memory_bytes", status.memory_bytes},
                    {"driver", status.driver},
                    {"reason", status.reason},
                    {"remedy", status.remedy}});
  }
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
      "It runs a graph of one node on every device, and prints what runs it and the card. Where a "
      "device does not work, it prints why, and what would change that. The first column is what "
      "--device takes.\n"
      "Example: intaglio devices");
  add_library_flags(*command, flags->backend);
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
