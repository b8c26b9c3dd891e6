// Reads the fields of a tokenizer's tables from JSON. Errors are std::invalid_argument, whose
// message completes a sentence that begins with the tokenizer's name.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "intaglio/error.h"
#include "text/added_token.h"

namespace intaglio {

using Json = nlohmann::json;

[[noreturn]] void fail(const std::string& what);
const Json& member(const Json& object, const char* key);
bool read_bool(const Json& object, const char* key);
std::string read_text(const Json& object, const char* key);
const Json& read_list(const Json& object, const char* key);
// A token id is the index of a row of the text encoder's embeddings.
std::int64_t read_id(const Json& object, const char* key);
std::vector<AddedToken> read_added_tokens(const Json& object);

// Returns read(json), where `json` is the parsed content of the file `path`. Throws InputError
// naming `path` in place of the errors above.
template <typename Read>
auto read_tables(const std::filesystem::path& path, const std::string& json, const Read& read) {
  const auto refuse = [&](const std::string& what) {
    return InputError("the tokenizer " + path.string() + " " + what + ": export the bundle again");
  };
  try {
    return read(Json::parse(json));
  } catch (const Json::parse_error& error) {
    throw refuse("is not valid JSON at byte " + std::to_string(error.byte));
  } catch (const Json::out_of_range&) {
    throw refuse("has a number that is too large");
  } catch (const std::invalid_argument& problem) {
    throw refuse(problem.what());
  }
}

}  // namespace intaglio
