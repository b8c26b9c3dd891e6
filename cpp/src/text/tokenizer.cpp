// Opens the tables of a tokenizer and makes the tokenizer of their type.
#include "intaglio/tokenizer.h"

#include <nlohmann/json.hpp>

#include "intaglio/error.h"
#include "intaglio/file.h"
#include "text/byte_level_tokenizer.h"
#include "text/clip_tokenizer.h"
#include "text/tables.h"
#include "text/unigram_tokenizer.h"

namespace intaglio {
namespace {

// Reads "type" at the top level and stops there. The exporter writes it first, so this is quick.
class TypeFinder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::string type;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t& value) override {
    if (depth_ != 1 || key_ != "type") return true;
    type = value;
    return false;
  }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return ++depth_ > 0; }
  bool end_object() override { return --depth_ >= 0; }
  bool start_array(std::size_t) override { return ++depth_ > 0; }
  bool end_array() override { return --depth_ >= 0; }
  bool key(string_t& value) override {
    if (depth_ == 1) key_ = value;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception&) override {
    return false;
  }

 private:
  int depth_ = 0;
  std::string key_;
};

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& tables) {
  return make_tokenizer(tables, read_file(tables));
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::filesystem::path& tables,
                                          const std::string& json) {
  TypeFinder finder;
  nlohmann::json::sax_parse(json.data(), json.data() + json.size(), &finder);
  if (finder.type == "clip_bpe") {
    return std::make_unique<ClipTokenizer>(tables, read_clip_tables(tables, json));
  }
  if (finder.type == "unigram") {
    return std::make_unique<UnigramTokenizer>(read_unigram_tables(tables, json));
  }
  if (finder.type == "byte_level_bpe")
    return std::make_unique<ByteLevelTokenizer>(read_byte_level_tables(tables, json));
  throw InputError(
      "the tokenizer " + tables.string() +
      (finder.type.empty() ? " has no type" : " has the unknown type \"" + finder.type + "\"") +
      ": this version of Intaglio reads clip_bpe, unigram and byte_level_bpe, so export the bundle "
      "again");
}

}  // namespace intaglio
