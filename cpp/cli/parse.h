// Converts the text of a flag to the type of its option. Each function throws UsageError naming the
// flag when the text does not fit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "intaglio/guidance.h"

namespace intaglio::cli {

void parse(const std::string& flag, const std::string& text, std::string& value);
void parse(const std::string& flag, const std::string& text, int& value);
void parse(const std::string& flag, const std::string& text, double& value);
void parse(const std::string& flag, const std::string& text, std::vector<std::uint64_t>& value);
void parse(const std::string& flag, const std::string& text, std::vector<int>& value);
void parse(const std::string& flag, const std::string& text, Ramp& value);
void parse(const std::string& flag, const std::string& text, Window& value);

template <typename T>
void parse(const std::string& flag, const std::string& text, std::optional<T>& value) {
  parse(flag, text, value.emplace());
}

}  // namespace intaglio::cli
