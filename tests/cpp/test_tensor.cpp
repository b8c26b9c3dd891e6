#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "intaglio/error.h"
#include "intaglio/file.h"
#include "intaglio/tensor.h"
#include "platform/process.h"

namespace intaglio {
namespace {

TEST(Tensor, RowsShareMemory) {
  Tensor tensor({3, 2}, DType::float32);
  tensor.rows(1, 2).floats()[0] = 5.0F;
  EXPECT_EQ(tensor.floats()[2], 5.0F);
  EXPECT_EQ(tensor.clone().floats()[2], 5.0F);
  tensor.clone().floats()[2] = 0.0F;
  EXPECT_EQ(tensor.floats()[2], 5.0F);
}

TEST(Tensor, RefusesImpossibleSizes) {
  const std::int64_t large = std::int64_t{1} << 40;
  EXPECT_THROW(Tensor({2, -1}, DType::float32), UsageError);
  EXPECT_THROW(Tensor({0, -1}, DType::float32), UsageError);
  EXPECT_THROW(Tensor({large, large}, DType::float32), OutOfMemoryError);
  EXPECT_THROW(Tensor({large, large, large, large}, DType::uint8), OutOfMemoryError);
  EXPECT_EQ(Tensor({large, large, 0}, DType::float32).size(), 0);
}

class Npy : public testing::Test {
 protected:
  const std::filesystem::path path_ = std::filesystem::temp_directory_path() /
                                      ("intaglio_npy_" + std::to_string(platform::process_id()));
  void TearDown() override { std::filesystem::remove(path_); }
};

TEST_F(Npy, RoundTrip) {
  for (const Shape& shape : {Shape{}, Shape{7}, Shape{2, 3, 4, 5}}) {
    Tensor tensor(shape, DType::float32);
    for (std::size_t i = 0; i < tensor.floats().size(); ++i)
      tensor.floats()[i] = static_cast<float>(i) * 0.1F;
    save_npy(path_, tensor);
    const Tensor loaded = load_npy(path_);
    EXPECT_EQ(loaded.shape(), shape);
    EXPECT_TRUE(std::ranges::equal(loaded.floats(), tensor.floats()));
  }
}

TEST_F(Npy, RefusesTruncatedAndForeignFiles) {
  save_npy(path_, Tensor({100}, DType::float32));
  const std::string whole = read_file(path_);
  for (const std::size_t length :
       {std::size_t{0}, std::size_t{5}, std::size_t{20}, whole.size() - 1}) {
    write_file(path_, whole.substr(0, length));
    EXPECT_THROW(load_npy(path_), InputError) << length;
  }
  write_file(path_, "PK" + whole);
  EXPECT_THROW(load_npy(path_), InputError);
}

TEST(File, FailedWriteLeavesNothingBehind) {
  const auto folder = std::filesystem::temp_directory_path() /
                      ("intaglio_file_" + std::to_string(platform::process_id()));
  std::filesystem::create_directories(folder / "target");  // renaming over a folder fails
  EXPECT_THROW(write_file(folder / "target", "content"), InputError);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  std::filesystem::remove_all(folder);
  EXPECT_THROW(write_file(folder / "nowhere" / "file", "content"), InputError);
}

}  // namespace
}  // namespace intaglio
