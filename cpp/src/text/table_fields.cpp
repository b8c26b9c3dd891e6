#include "text/table_fields.h"

namespace intaglio {

void fail(const std::string& what) { throw std::invalid_argument(what); }

const Json& member(const Json& object, const char* key) {
  if (!object.is_object())
    fail(std::string("has a value in place of the object that holds ") + key);
  const auto found = object.find(key);
  if (found == object.end()) fail(std::string("lacks ") + key);
  return *found;
}

bool read_bool(const Json& object, const char* key) {
  const Json& value = member(object, key);
  if (!value.is_boolean()) fail(std::string("has a ") + key + " that is not a boolean");
  return value.get<bool>();
}

std::string read_text(const Json& object, const char* key) {
  const Json& value = member(object, key);
  if (!value.is_string()) fail(std::string("has a ") + key + " that is not a string");
  return value.get<std::string>();
}

const Json& read_list(const Json& object, const char* key) {
  const Json& value = member(object, key);
  if (!value.is_array()) fail(std::string("has a ") + key + " that is not a list");
  return value;
}

std::int64_t read_id(const Json& object, const char* key) {
  const Json& value = member(object, key);
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > INT32_MAX) {
    fail(std::string("has a ") + key + " that is not a token id");
  }
  return value.get<std::int64_t>();
}

std::vector<AddedToken> read_added_tokens(const Json& object) {
  std::vector<AddedToken> tokens;
  for (const Json& token : read_list(object, "added_tokens")) {
    tokens.push_back({.content = read_text(token, "content"),
                      .id = read_id(token, "id"),
                      .normalized = read_bool(token, "normalized"),
                      .lstrip = read_bool(token, "lstrip"),
                      .rstrip = read_bool(token, "rstrip")});
  }
  return tokens;
}

}  // namespace intaglio
