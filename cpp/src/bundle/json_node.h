// A value in bundle.json, or in another such file, that knows its own path, so that every message
// can name it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "intaglio/error.h"

namespace intaglio {

// The limit of a size or a count. It is beyond any model, and the product of two fits into an int.
inline constexpr int kLargestSize = 1 << 15;

class Node {
 public:
  using Json = nlohmann::json;

  // `json` and `file`, the name of the file for messages, must outlive the node. Messages end with
  // `remedy`.
  Node(const Json& json, std::string path, const std::string& file,
       const char* remedy = "export the bundle again")
      : json_(&json), path_(std::move(path)), file_(&file), remedy_(remedy) {}

  [[noreturn]] void refuse(const std::string& why) const {
    const std::string& where = path_.empty() ? "the manifest" : path_;
    throw InputError(*file_ + ": " + where + " " + why + ": " + remedy_);
  }

  bool has(const char* key) const { return json_->is_object() && json_->contains(key); }
  bool is_string() const { return json_->is_string(); }
  bool is_null() const { return json_->is_null(); }
  Node at(const char* key) const {
    const bool found = has(key);
    const std::string where = path_.empty() ? key : path_ + "." + key;
    const Node child(found ? (*json_)[key] : *json_, where, *file_, remedy_);
    if (!found) child.refuse("is missing");
    return child;
  }
  std::vector<Node> items() const {
    if (!json_->is_array()) refuse("must be a list");
    std::vector<Node> nodes;
    for (std::size_t i = 0; i < json_->size(); ++i) {
      nodes.emplace_back((*json_)[i], path_ + "[" + std::to_string(i) + "]", *file_, remedy_);
    }
    return nodes;
  }
  std::vector<std::pair<std::string, Node>> members() const {
    if (!json_->is_object()) refuse("must be an object");
    std::vector<std::pair<std::string, Node>> nodes;
    for (const auto& [key, value] : json_->items()) {
      const std::string quoted =
          Json(key).dump();  // escaped, since a zero byte would end the message
      const std::string shown = quoted.substr(1, quoted.size() - 2);
      nodes.emplace_back(key, Node(value, path_ + "." + shown, *file_, remedy_));
    }
    return nodes;
  }

  // Returns the value if it is exactly a T. The JSON library would cut 1.5, true or 2^32 + 1 down
  // to the int 1.
  template <typename T>
  T as() const {
    if constexpr (std::is_same_v<T, bool>) {
      if (json_->is_boolean()) return json_->get<bool>();
    } else if constexpr (std::is_integral_v<T>) {
      if (json_->is_number_unsigned() && std::in_range<T>(json_->get<std::uint64_t>())) {
        return static_cast<T>(json_->get<std::uint64_t>());
      }
      if (json_->is_number_integer() && !json_->is_number_unsigned() &&
          std::in_range<T>(json_->get<std::int64_t>())) {
        return static_cast<T>(json_->get<std::int64_t>());
      }
    } else if constexpr (std::is_floating_point_v<T>) {
      if (json_->is_number() && std::isfinite(json_->get<T>())) return json_->get<T>();
    } else {
      static_assert(std::is_same_v<T, std::string>);
      if (is_string()) return json_->get<std::string>();
    }
    refuse("has the wrong type");
  }
  template <typename T>
  T get(const char* key) const {
    return at(key).as<T>();
  }
  // Leaves `value` as it is where the key is absent or null.
  template <typename T>
  void get_if(const char* key, T& value) const {
    if (has(key) && !(*json_)[key].is_null()) value = get<T>(key);
  }
  template <typename T>
  std::vector<T> list(const char* key) const {
    std::vector<T> values;
    for (const Node& item : at(key).items()) values.push_back(item.as<T>());
    return values;
  }
  int positive(int limit = kLargestSize) const {
    const int value = as<int>();
    if (value < 1 || value > limit) refuse("must be from 1 to " + std::to_string(limit));
    return value;
  }
  int positive(const char* key) const { return at(key).positive(); }

  std::string file_path(const char* key) const {
    auto path = get<std::string>(key);
    at(key).check_inside(path);
    return path;
  }
  void check_inside(const std::string& path) const {
    const std::filesystem::path p(path);
    // On Windows "/x" and "C:x" lead outside, although neither is an absolute path.
    const bool climbs = std::find(p.begin(), p.end(), "..") != p.end();
    const bool odd = std::ranges::any_of(
        path, [](unsigned char c) { return c < ' ' || c == '\\' || c == 0x7f; });
    if (path.empty() || p.has_root_path() || climbs || odd) {
      refuse("names " + Json(path).dump() + ", which is not a path inside the bundle");
    }
  }

 private:
  const Json* json_;
  std::string path_;
  const std::string* file_;
  const char* remedy_;
};

}  // namespace intaglio
