#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/safetensors.h"
#include "intaglio/error.h"
#include "intaglio/file.h"

namespace intaglio {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class Safetensors : public testing::Test {
 protected:
  // ctest runs the tests at the same time, so each needs a file of its own.
  std::filesystem::path path = testing::TempDir() +
                               testing::UnitTest::GetInstance()->current_test_info()->name() +
                               ".safetensors";

  void TearDown() override { std::filesystem::remove(path); }

  void write(std::string_view header, std::string_view data) const {
    std::string content;
    for (int i = 0; i < 8; ++i) content += static_cast<char>(header.size() >> (8 * i) & 0xff);
    write_file(path, content.append(header).append(data));
  }
  void expect_refused(const std::string& says) const {
    try {
      load_safetensors(path);
      ADD_FAILURE() << "was accepted";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr(path.string()));
      EXPECT_THAT(error.what(), HasSubstr(says));
    }
  }
};

TEST_F(Safetensors, RoundTrip) {
  Tensor a({2, 1}, DType::float32);
  a.floats()[0] = 1.5F;
  a.floats()[1] = -0.0F;
  save_safetensors(path, {{"a", a}, {"b", Tensor({0, 3}, DType::float32)}});
  const NamedTensors read = load_safetensors(path);
  ASSERT_EQ(read.size(), 2U);
  EXPECT_EQ(read.at("a").shape(), (Shape{2, 1}));
  EXPECT_THAT(read.at("a").floats(), ElementsAre(1.5F, 0.0F));
  EXPECT_TRUE(std::signbit(read.at("a").floats()[1]));
  EXPECT_EQ(read.at("b").shape(), (Shape{0, 3}));
}

// IEEE 754 gives these bits the values 1, -2, the largest number, the smallest normal number, the
// smallest subnormal number, and infinity.
TEST_F(Safetensors, HalfPrecision) {
  const std::uint16_t bits[] = {0x3c00, 0xc000, 0x7bff, 0x0400, 0x0001, 0x7c00};
  write(R"({"x":{"dtype":"F16","shape":[6],"data_offsets":[0,12]}})",
        {reinterpret_cast<const char*>(bits), sizeof bits});
  EXPECT_THAT(load_safetensors(path).at("x").floats(),
              ElementsAre(1.0F, -2.0F, 65504.0F, 0x1p-14F, 0x1p-24F, INFINITY));
}

TEST_F(Safetensors, BrainFloat) {
  const std::uint16_t bits[] = {0x3f80, 0xc049};
  write(R"({"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}, "__metadata__":{"a":"b"}})",
        {reinterpret_cast<const char*>(bits), sizeof bits});
  const NamedTensors read = load_safetensors(path);
  EXPECT_EQ(read.size(), 1U);
  EXPECT_THAT(read.at("x").floats(), ElementsAre(1.0F, -3.140625F));
}

TEST_F(Safetensors, Bool) {
  write(R"({"x":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}})", {"\1\0\1", 3});
  EXPECT_THAT(load_safetensors(path).at("x").floats(), ElementsAre(1.0F, 0.0F, 1.0F));
}

TEST_F(Safetensors, HugeShapesAreRefused) {
  std::string ones = "1";
  for (int i = 1; i < 100000; ++i) ones += ",1";
  for (const std::string& shape :
       {ones, std::string("1,1,1,1,1,1,1,1,1"), std::string("4294967296,4294967296"),
        std::string("0,2147483649"), std::string("0,4611686018427387904,4611686018427387904")}) {
    write(R"({"x":{"dtype":"F32","shape":[)" + shape + R"(],"data_offsets":[0,4]}})", "1234");
    expect_refused("with more than 8 axes or more than 2^31 elements");
  }
}

TEST_F(Safetensors, OtherTypesAreNotWritten) {
  EXPECT_THROW(save_safetensors(path, {{"x", Tensor({2}, DType::int64)}}), InputError);
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(Safetensors, DamagedFilesAreRefused) {
  expect_refused("No such file");
  write_file(path, "");
  expect_refused("is not a safetensors file");
  write_file(path, "1234567");
  expect_refused("is not a safetensors file");
  write_file(path, "\xff\xff\xff\xff\xff\xff\xff\xff{}");
  expect_refused("is truncated");
  for (const char* header :
       {"", "{", "[]", "null", "\xff", R"({"x":1})", R"({"x":{}})",
        R"({"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})",
        R"({"x":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})",
        R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0]}})",
        R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551616]}})",
        R"({"x":{"dtype":1,"shape":[1],"data_offsets":[0,4]}})"}) {
    write(header, "1234");
    expect_refused("has a header that cannot be read");
  }
  write(std::string(100000, '['), "");
  expect_refused("has a header that cannot be read");
  for (const char* header : {R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
                             R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})",
                             R"({"x":{"dtype":"F32","shape":[],"data_offsets":[0,3]}})",
                             R"({"x":{"dtype":"F32","shape":[0],"data_offsets":[0,4]}})",
                             R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})",
                             R"({"x":{"dtype":"F32","shape":[65536,32768],"data_offsets":[0,4]}})",
                             R"({"x":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})"}) {
    write(header, "1234");
    expect_refused("is damaged or truncated at \"x\"");
  }
  write(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "12345");
  expect_refused("has more data after its last tensor");
  write(R"({"x\u0000":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}})", "12345678");
  expect_refused(R"("x\u0000" of a type other than F32, F16, BF16, I64 and BOOL)");
}

}  // namespace
}  // namespace intaglio
