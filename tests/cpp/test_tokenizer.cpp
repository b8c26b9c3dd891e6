#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "golden.h"
#include "intaglio/error.h"
#include "intaglio/tokenizer.h"
#include "platform/process.h"

namespace intaglio {
namespace {

using Ids = std::vector<std::int64_t>;

// These are the lengths with which make_golden.py encoded the prompts.
const std::map<std::string, int> kLengths = {
    {"clip_l", 77}, {"clip_g", 16}, {"gaps", 12}, {"t5", 64}, {"byte_level", 48}};

// The golden file has about two hundred prompts with unusual Unicode, some of them very long.
// clip_g pads with "!" and finds its start token in the normalized text, gaps lacks most of the
// byte alphabet, t5 is a Unigram tokenizer, and byte_level is one like Mistral's.
TEST(Tokenizer, EqualsTransformers) {
  const auto cases = golden_json("tokens.json");
  ASSERT_GT(cases.size(), 180U);
  for (const auto& [name, length] : kLengths) {
    const auto tokenizer = load_tokenizer(golden_path(name + ".json"));
    for (const auto& golden : cases) {
      Ids expected = golden[name];
      expected.resize(static_cast<std::size_t>(length), expected.back());
      EXPECT_EQ(tokenizer->encode(golden["text"].get<std::string>(), length).ids, expected)
          << name << ": " << golden["text"].dump().substr(0, 200);
    }
  }
}

TEST(ClipTokenizer, ShortLengthsKeepTheSpecialTokens) {
  const auto tables = golden_json("clip_l.json");
  const auto tokenizer = load_tokenizer(golden_path("clip_l.json"));
  const std::int64_t bos = tables["bos_token_id"], eos = tables["eos_token_id"];
  EXPECT_EQ(tokenizer->encode("a dark boot", 2).ids, (Ids{bos, eos}));
  const Ids three = tokenizer->encode("a dark boot", 3).ids;
  EXPECT_EQ(three, (Ids{bos, tables["vocab"]["a</w>"], eos}));
  EXPECT_THROW(tokenizer->encode("a dark boot", 1), UsageError);
  EXPECT_THROW(tokenizer->encode("", 0), UsageError);
}

TEST(ClipTokenizer, RefusesBrokenUtf8) {
  const auto tokenizer = load_tokenizer(golden_path("clip_l.json"));
  const std::string broken[] = {
      "\x80",                           // a continuation byte alone
      "abc\xC3",                        // cut off
      "\xE2\x82",                       // cut off
      "\xF0\x9F\x98",                   // cut off
      "\xC0\xAF",                       // overlong
      "\xE0\x80\xAF",                   // overlong
      "\xED\xA0\x80",                   // a surrogate
      "\xF4\x90\x80\x80",               // past U+10FFFF
      "\xFF",                           // never valid
      "<|endoftext|>\xFE",              // after a special token
      std::string(500, 'a') + "\xC3(",  // after the last token that is used
  };
  for (const std::string& text : broken) {
    try {
      tokenizer->encode(text, 16);
      ADD_FAILURE() << "accepted " << testing::PrintToString(text);
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("UTF-8"));
    }
  }
}

// Writes tables to a file and removes it after the test.
class TablesFile : public testing::Test {
 protected:
  explicit TablesFile(const char* name = "gaps.json") : tables_(golden_json(name)) {}
  ~TablesFile() override { std::filesystem::remove(path_); }

  void write(const std::string& content) const {
    std::ofstream(path_, std::ios::binary) << content;
  }
  void expect_refused(const std::string& content, const std::string& reason) const {
    write(content);
    try {
      load_tokenizer(path_);
      ADD_FAILURE() << "accepted tables that should fail for: " << reason;
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(),
                  testing::AllOf(testing::HasSubstr(path_.string()), testing::HasSubstr(reason)));
    }
  }

  std::string changed(const char* pointer, const nlohmann::json& value) const {
    auto tables = tables_;
    tables[nlohmann::json::json_pointer(pointer)] = value;
    return tables.dump();
  }

  nlohmann::json tables_;
  const std::filesystem::path path_ = std::filesystem::temp_directory_path() /
                                      ("intaglio_tables_" + std::to_string(platform::process_id()));
};

TEST_F(TablesFile, MissingOrNoFile) {
  EXPECT_THROW(load_tokenizer(path_), InputError);
  EXPECT_THROW(load_tokenizer(std::filesystem::temp_directory_path()), InputError);
}

TEST_F(TablesFile, TruncatedAnywhere) {
  const std::string whole = tables_.dump();
  write(whole);
  EXPECT_NO_THROW(load_tokenizer(path_));
  for (std::size_t size = 0; size < whole.size(); size += 7) {
    expect_refused(whole.substr(0, size), "");
  }
}

TEST_F(TablesFile, MessageNamesTheProblem) {
  expect_refused("", "has no type");
  expect_refused("[1, 2]", "has no type");
  expect_refused(changed("/type", "t5_unigram"), "t5_unigram");
  expect_refused(changed("/vocab", nlohmann::json::object()), "vocab");
  expect_refused(changed("/vocab", {{"a", "b"}}), "number");
  expect_refused(changed("/vocab", {{"a", -1}}), "negative");
  expect_refused(changed("/vocab", {{"a", 1.5}}), "integer");
  expect_refused(changed("/vocab", {{"a", 5000000000}}), "large");
  expect_refused(changed("/merges", nlohmann::json::array({"a zzz"})), "a zzz");
  expect_refused(changed("/merges", nlohmann::json::array({"ab"})), "ab");
  expect_refused(changed("/merges", nlohmann::json::array({1})), "merge");
  expect_refused(changed("/bos_token_id", nullptr), "bos_token_id");
  expect_refused(changed("/added_tokens", {{"<x>", {{"id", 1}, {"lstrip", true}}}}), "lstrip");
}

TEST_F(TablesFile, LongestAddedTokenWins) {
  const std::int64_t short_id = 200, long_id = 201, bos = tables_["bos_token_id"];
  for (const bool normalized : {false, true}) {
    const auto entry = [&](std::int64_t id) {
      return nlohmann::json{{"id", id}, {"normalized", normalized}, {"lstrip", false}};
    };
    tables_["added_tokens"] = {{"<x>", entry(short_id)}, {"<x><y>", entry(long_id)}};
    write(tables_.dump());
    const auto tokenizer = load_tokenizer(path_);
    EXPECT_EQ(tokenizer->encode("<x><x><y>", 4).ids,
              (Ids{bos, short_id, long_id, tables_["eos_token_id"]}));
    const bool found = tokenizer->encode("<X>", 4).ids[1] == short_id;
    EXPECT_EQ(found, normalized);
  }
}

TEST_F(TablesFile, UnknownBytesAreDroppedWithoutAnUnknownToken) {
  tables_["unk_token_id"] = nullptr;
  write(tables_.dump());
  const auto tokenizer = load_tokenizer(path_);
  const auto& vocab = tables_["vocab"];
  const std::int64_t bos = tables_["bos_token_id"], eos = tables_["eos_token_id"];
  EXPECT_EQ(tokenizer->encode("\u00e9a", 4).ids,
            (Ids{bos, vocab["a</w>"], eos, tables_["pad_token_id"]}));
}

class UnigramTablesFile : public TablesFile {
 protected:
  UnigramTablesFile() : TablesFile("t5.json") {}

  void set_charsmap(const std::string& base64) { tables_["normalizers"][0]["charsmap"] = base64; }
  Tokens encode(const std::string& text, int length) const {
    write(tables_.dump());
    return load_tokenizer(path_)->encode(text, length);
  }
};

TEST_F(UnigramTablesFile, MessageNamesTheProblem) {
  using Json = nlohmann::json;
  write(tables_.dump());
  EXPECT_NO_THROW(load_tokenizer(path_));
  for (const auto& [key, value] : tables_.items()) {
    if (key == "type" || key == "max_length") continue;
    expect_refused(changed(("/" + key).c_str(), nullptr), key == "scores" ? "scores" : key);
    Json lacking = tables_;
    lacking.erase(key);
    expect_refused(lacking.dump(), "lacks " + key);
  }
  const std::string whole = tables_.dump();
  for (std::size_t size = 20; size < whole.size(); size += 997) {
    expect_refused(whole.substr(0, size), "");
  }
  expect_refused(changed("/pieces", Json::array()), "one score for every piece");
  expect_refused(changed("/scores/0", "x"), "score");
  expect_refused(R"({"type": "unigram", "scores": [1e999]})", "too large");
  expect_refused(changed("/pieces/5", 5), "piece");
  expect_refused(changed("/unk_token_id", 100000), "unk_token_id");
  expect_refused(changed("/eos_token_id", -1), "eos_token_id");
  expect_refused(changed("/pad_token_id", 5000000000), "pad_token_id");
  expect_refused(changed("/byte_fallback", 1), "byte_fallback");
  expect_refused(changed("/normalizers/0/type", "nfkd"), "nfkd");
  expect_refused(changed("/normalizers/0", "nfkd"), "object");
  expect_refused(changed("/normalizers/0/charsmap", "AAA"), "base64");
  expect_refused(changed("/normalizers/0/charsmap", "A?AA"), "base64");
  expect_refused(changed("/normalizers/0/charsmap", ""), "cut off");
  expect_refused(changed("/normalizers/0/charsmap", "AAAA"), "cut off");
  expect_refused(changed("/normalizers/0/charsmap", "/////wAA"), "cut off");
  expect_refused(changed("/normalizers/0/charsmap", "BAAAAAAAAAD/"), "UTF-8");
  expect_refused(changed("/added_tokens/0/lstrip", "yes"), "lstrip");
  expect_refused(changed("/added_tokens/0/id", 0.5), "id");
  expect_refused(changed("/added_tokens/0/content", 1), "content");
}

// A character map with offsets past its end must not read there, whatever the text is.
TEST_F(UnigramTablesFile, DamagedCharacterMapIsHarmless) {
  const std::string whole = tables_["normalizers"][0]["charsmap"];
  const std::string text = golden_json("tokens.json")[70]["text"].get<std::string>() + "½ﬁé\u3000";
  for (const char filler : {'/', 'B', 'g', '7'}) {
    for (std::size_t begin = 8; begin + 400 < whole.size(); begin += 2000) {
      set_charsmap(whole.substr(0, begin) + std::string(300, filler) + whole.substr(begin + 300));
      try {
        EXPECT_EQ(encode(text, 20).ids.size(), 20U);
      } catch (const InputError& error) {
        EXPECT_THAT(error.what(), testing::HasSubstr("UTF-8"));
      }
    }
  }
}

TEST_F(UnigramTablesFile, ReportsUsedTokensAndTruncation) {
  const Tokens all = encode("a dark boot", 30);
  ASSERT_FALSE(all.truncated);
  ASSERT_EQ(all.ids.size(), 30U);
  ASSERT_GT(all.used, 2);
  const auto end = static_cast<std::size_t>(all.used) - 1;
  EXPECT_EQ(all.ids[end], tables_["eos_token_id"].get<std::int64_t>());
  EXPECT_EQ(all.ids[end + 1], tables_["pad_token_id"].get<std::int64_t>());
  const Tokens exact = encode("a dark boot", all.used);
  EXPECT_FALSE(exact.truncated);
  const Tokens cut = encode("a dark boot", all.used - 1);
  EXPECT_TRUE(cut.truncated);
  EXPECT_EQ(cut.used, all.used - 1);
  EXPECT_EQ(encode("", 1).used, 1);
  EXPECT_THROW(encode("", 0), UsageError);
  EXPECT_THROW(encode("\xE2\x82", 8), InputError);
}

TEST_F(UnigramTablesFile, LowercaseAndStripAsPythonDoes) {
  const Ids expected = encode("οδος i\u0307 straße", 40).ids;
  tables_["lowercase_strip"] = true;
  EXPECT_EQ(encode("\x1c\u3000ΟΔΟΣ İ STRAßE\u2028 ", 40).ids, expected);
}

}  // namespace
}  // namespace intaglio
