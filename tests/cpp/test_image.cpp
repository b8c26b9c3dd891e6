#include <gtest/gtest.h>

#include <filesystem>
#include <limits>

#include "intaglio/error.h"
#include "intaglio/file.h"
#include "intaglio/image.h"
#include "platform/process.h"

namespace intaglio {
namespace {

class Png : public testing::Test {
 protected:
  const std::filesystem::path path_ = std::filesystem::temp_directory_path() /
                                      ("intaglio_png_" + std::to_string(platform::process_id()));
  void TearDown() override { std::filesystem::remove(path_); }

  static Image colours(int width, int height) {
    Image image{width, height, {}};
    for (int i = 0; i < width * height * 3; ++i) {
      image.pixels.push_back(static_cast<std::uint8_t>(i * 37));
    }
    return image;
  }
};

TEST_F(Png, RoundTripKeepsEveryPixel) {
  for (const auto& [width, height] : {std::pair{1, 1}, {3, 2}, {17, 5}, {64, 128}}) {
    const Image image = colours(width, height);
    write_png(path_, image);
    const Image loaded = read_png(path_);
    EXPECT_EQ(loaded.width, width);
    EXPECT_EQ(loaded.height, height);
    EXPECT_EQ(loaded.pixels, image.pixels);
  }
}

// PNG specification 11.3.3.4: a keyword, a zero byte, the compression flag and method, two empty
// strings, and the text in UTF-8.
TEST_F(Png, TextGoesIntoUncompressedUtf8Chunks) {
  write_png(path_, colours(2, 2), {{"Description", "na\xc3\xafve \xe2\x98\x82"}, {"empty", ""}});
  const std::string file = read_file(path_);
  using namespace std::string_literals;
  EXPECT_NE(file.find("iTXtDescription\0\0\0\0\0na\xc3\xafve \xe2\x98\x82"s), std::string::npos);
  EXPECT_NE(file.find("iTXtempty\0\0\0\0\0"s), std::string::npos);
  EXPECT_EQ(file.find("zTXt"), std::string::npos);
}

TEST_F(Png, RefusesDamagedAndForeignFiles) {
  write_png(path_, colours(20, 20));
  const std::string whole = read_file(path_);
  for (const std::size_t length :
       {std::size_t{0}, std::size_t{8}, std::size_t{40}, whole.size() / 2}) {
    write_file(path_, whole.substr(0, length));
    EXPECT_THROW(read_png(path_), InputError) << length;
  }
  std::string damaged = whole;
  damaged[damaged.size() / 2] ^= 1;
  for (const std::string& content : {std::string("hello"), "\xff\xd8" + whole, damaged}) {
    write_file(path_, content);
    EXPECT_THROW(read_png(path_), InputError);
  }
  EXPECT_THROW(read_png(path_ / "in a file"), InputError);
  EXPECT_THROW(read_png(path_.parent_path()), InputError);
}

// VaeImageProcessor computes (x / 2 + 0.5).clamp(0, 1), then (x * 255).round(), which rounds halves
// to even.
TEST(ToImages, RoundsAsDiffusers) {
  const auto byte = [](float value) {
    Tensor tensor({1, 3, 1, 1}, DType::float32);
    tensor.floats()[1] = value;
    return int{to_images(tensor).at(0).pixels.at(1)};
  };
  EXPECT_EQ(byte(-1), 0);
  EXPECT_EQ(byte(1), 255);
  EXPECT_EQ(byte(0), 128);              // 127.5 rounds to even
  EXPECT_EQ(byte(-1 + 1 / 255.0F), 0);  // 0.5 rounds to even
  EXPECT_EQ(byte(-1 + 1.01F / 255.0F), 1);
  EXPECT_EQ(byte(-3), 0);
  EXPECT_EQ(byte(7), 255);
  EXPECT_EQ(byte(std::numeric_limits<float>::infinity()), 255);
  EXPECT_EQ(byte(std::numeric_limits<float>::quiet_NaN()), 0);
}

TEST(ToImages, ConvertsChannelsFirstToChannelsLast) {
  Tensor tensor({2, 3, 1, 2}, DType::float32);
  const float levels[] = {-1, 1, 1, -1, 1, 1, -1, -1, -1, -1, 1, -1};
  std::ranges::copy(levels, tensor.floats().begin());
  const auto images = to_images(tensor);
  ASSERT_EQ(images.size(), 2U);
  EXPECT_EQ(images[0].pixels, (std::vector<std::uint8_t>{0, 255, 255, 255, 0, 255}));
  EXPECT_EQ(images[1].pixels, (std::vector<std::uint8_t>{0, 0, 255, 0, 0, 0}));
}

TEST(FromImage, InvertsToImages) {
  Image image{16, 16, {}};
  for (int i = 0; i < 16 * 16 * 3; ++i) image.pixels.push_back(static_cast<std::uint8_t>(i));
  const Tensor tensor = from_image(image);
  EXPECT_EQ(tensor.shape(), (Shape{1, 3, 16, 16}));
  EXPECT_EQ(to_images(tensor).at(0).pixels, image.pixels);
  EXPECT_FLOAT_EQ(tensor.floats()[0], -1.0F);
}

}  // namespace
}  // namespace intaglio
