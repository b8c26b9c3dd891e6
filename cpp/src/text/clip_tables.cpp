#include "text/clip_tables.h"

#include <nlohmann/json.hpp>

#include "intaglio/error.h"

namespace intaglio {
namespace {

using Json = nlohmann::json;

// Reads the JSON event by event. A parsed tree of fifty thousand nodes would take most of the time
// that a program needs to start.
class TablesReader final : public nlohmann::json_sax<Json> {
 public:
  explicit TablesReader(const std::filesystem::path& path) : path_(path) {
    tables_.vocab.reserve(1U << 16);  // CLIP's vocabulary has 49,408 tokens
  }

  ClipTables take() {
    if (tables_.vocab.empty()) fail("has no vocab");
    if (!tables_.bos || !tables_.eos || !tables_.pad) {
      fail("lacks bos_token_id, eos_token_id or pad_token_id");
    }
    return std::move(tables_);
  }

  bool null() override { return true; }
  bool boolean(bool value) override {
    if (depth_ != 3 || section_ != "added_tokens" || !value) return true;
    if (field_ == "normalized") tables_.added_tokens.back().normalized = true;
    if (field_ == "lstrip" || field_ == "rstrip" || field_ == "single_word") {
      fail("has an added token with " + field_ + ", which this version does not support");
    }
    return true;
  }
  bool number_integer(number_integer_t) override { return fail("has a negative number"); }
  bool number_unsigned(number_unsigned_t value) override {
    // The key of a merge packs two ids into 64 bits.
    if (value > UINT32_MAX) fail("has a token id that is too large");
    number(static_cast<std::int64_t>(value));
    return true;
  }
  bool number_float(number_float_t, const string_t&) override {
    return fail("has a number that is not an integer");
  }
  bool string(string_t& value) override {
    if (depth_ == 1 && section_ == "end_of_word_suffix") tables_.end_of_word_suffix = value;
    if (depth_ == 2 && section_ == "merges") tables_.merges.push_back(std::move(value));
    if (depth_ == 2 && section_ == "vocab") fail("has a token whose id is not a number");
    return true;
  }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override {
    if (depth_ == 2 && section_ == "added_tokens")
      tables_.added_tokens.push_back({.content = key_});
    return ++depth_ <= 3 || fail("is nested too deeply");
  }
  bool end_object() override { return --depth_ >= 0; }
  bool start_array(std::size_t) override { return ++depth_ <= 3 || fail("is nested too deeply"); }
  bool end_array() override { return --depth_ >= 0; }
  bool key(string_t& value) override {
    if (depth_ == 1)
      section_ = std::move(value);
    else if (depth_ == 2)
      key_ = std::move(value);
    else
      field_ = std::move(value);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const Json::exception&) override {
    return fail("is not valid JSON at byte " + std::to_string(position));
  }

 private:
  [[noreturn]] bool fail(const std::string& what) const {
    throw InputError("the tokenizer " + path_.string() + " " + what + ": export the bundle again");
  }

  void number(std::int64_t value) {
    if (depth_ == 1) {
      if (section_ == "bos_token_id") tables_.bos = value;
      if (section_ == "eos_token_id") tables_.eos = value;
      if (section_ == "pad_token_id") tables_.pad = value;
      if (section_ == "unk_token_id") tables_.unk = value;
    } else if (section_ == "vocab" && depth_ == 2) {
      tables_.vocab.emplace(std::move(key_), value);
    } else if (section_ == "merges") {
      fail("has a merge that is not a string");
    } else if (section_ == "added_tokens" && depth_ == 2) {
      tables_.added_tokens.push_back({.content = key_, .id = value});
    } else if (section_ == "added_tokens" && field_ == "id") {
      tables_.added_tokens.back().id = value;
    }
  }

  const std::filesystem::path& path_;
  ClipTables tables_;
  int depth_ = 0;
  std::string section_, key_, field_;  // the keys at depths 1, 2 and 3
};

}  // namespace

ClipTables read_clip_tables(const std::filesystem::path& path, const std::string& json) {
  TablesReader reader(path);
  Json::sax_parse(json.data(), json.data() + json.size(), &reader);
  return reader.take();
}

}  // namespace intaglio
