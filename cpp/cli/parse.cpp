#include "cli/parse.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "intaglio/error.h"
#include "intaglio/file.h"

namespace intaglio::cli {

namespace {

template <typename T>
T number(const std::string& flag, std::string_view text, const char* expected) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) {
    throw UsageError(flag + " \"" + std::string(text) + "\" is not " + expected);
  }
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

template <typename T>
std::vector<T> numbers(const std::string& flag, const std::string& text, const char* expected) {
  std::vector<T> values;
  for (const auto part : split(text, ',')) values.push_back(number<T>(flag, part, expected));
  return values;
}

// Reads the list of numbers in a JSON file.
std::vector<double> listed(const std::string& flag, const std::string& path) {
  const auto json =
      nlohmann::json::parse(read_file(std::u8string(path.begin(), path.end())), nullptr, false);
  if (!json.is_array() || json.empty() ||
      !std::all_of(json.begin(), json.end(), [](const auto& item) { return item.is_number(); }))
    throw InputError(flag + " @" + path +
                     ": the file is not a JSON list of numbers such as [7, 3]");
  return json.get<std::vector<double>>();
}

}  // namespace

void parse(const std::string&, const std::string& text, std::string& value) { value = text; }

void parse(const std::string& flag, const std::string& text, int& value) {
  value = number<int>(flag, text, "a whole number");
}

void parse(const std::string& flag, const std::string& text, double& value) {
  value = number<double>(flag, text, "a number");
}

void parse(const std::string& flag, const std::string& text, std::vector<std::uint64_t>& value) {
  value = numbers<std::uint64_t>(
      flag, text,
      "a list of whole numbers from 0 to 2^64 - 1, such as 1,2,3; for a random "
      "one give $RANDOM");
}

void parse(const std::string& flag, const std::string& text, std::vector<int>& value) {
  value = numbers<int>(flag, text, "a list of whole numbers, such as 1,2,3");
}

void parse(const std::string& flag, const std::string& text, Ramp& value) {
  constexpr auto expected = "a number, two numbers such as 0:1, or a list such as 7,7,3";
  if (text.starts_with('@')) {
    value = Ramp(listed(flag, text.substr(1)));
    return;
  }
  if (text.find(',') != std::string::npos) {
    value = Ramp(numbers<double>(flag, text, expected));
    return;
  }
  const auto parts = split(text, ':');
  if (parts.size() > 2) throw UsageError(flag + " \"" + text + "\" is not " + expected);
  value = Ramp(number<double>(flag, parts.front(), expected),
               number<double>(flag, parts.back(), expected));
}

void parse(const std::string& flag, const std::string& text, Window& value) {
  const auto parts = split(text, ':');
  constexpr auto expected = "a part of the run such as 0:0.7, from 0 to 1";
  if (parts.size() != 2) throw UsageError(flag + " \"" + text + "\" is not " + expected);
  value = {number<double>(flag, parts[0], expected), number<double>(flag, parts[1], expected)};
}

}  // namespace intaglio::cli
