#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "backend/engine_cache.h"
#include "intaglio/file.h"

namespace intaglio {
namespace {

namespace fs = std::filesystem;

class EngineCache : public testing::Test {
 protected:
  // ctest runs the tests at the same time, so each needs a folder of its own.
  fs::path root =
      fs::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
  fs::path bundle = root / "bundle";

  void SetUp() override {
    fs::remove_all(root);
    fs::create_directories(bundle);
    write_file(bundle / "bundle.json", "abc");
    ::setenv("XDG_CACHE_HOME", (root / "cache").c_str(), 1);
    ::setenv("HOME", (root / "home").c_str(), 1);
  }
  void TearDown() override { fs::remove_all(root); }
  // Not even root can create a folder where there is a file.
  void make_read_only() const { write_file(bundle / "engines", ""); }
};

TEST_F(EngineCache, IsInTheBundle) {
  // The key is the start of FIPS 180-2's example, the SHA-256 of "abc".
  const fs::path folder = make_engine_cache(bundle, "1.31.1");
  EXPECT_EQ(folder, bundle / "engines/tensorrt/onnxruntime-1.31.1-ba7816bf8f01cfea");
  EXPECT_TRUE(fs::is_directory(folder));
  EXPECT_FALSE(fs::exists(root / "cache"));
}

TEST_F(EngineCache, IsInTheUsersCacheForAReadOnlyBundle) {
  make_read_only();
  const fs::path name = "intaglio/tensorrt/onnxruntime-1.31.1-ba7816bf8f01cfea";
  EXPECT_EQ(make_engine_cache(bundle, "1.31.1"), root / "cache" / name);
  ::setenv("XDG_CACHE_HOME", "relative", 1);
  EXPECT_EQ(make_engine_cache(bundle, "1.31.1"), root / "home/.cache" / name);
  EXPECT_TRUE(fs::is_directory(root / "home/.cache" / name));
}

TEST_F(EngineCache, IsEmptyWithoutAWritableFolder) {
  make_read_only();
  write_file(root / "cache", "");
  EXPECT_EQ(make_engine_cache(bundle, "1.31.1"), fs::path());
  ::unsetenv("XDG_CACHE_HOME");
  ::unsetenv("HOME");
  EXPECT_EQ(make_engine_cache(bundle, "1.31.1"), fs::path());
}

TEST_F(EngineCache, DiffersForAnotherBundleOrVersion) {
  const fs::path first = make_engine_cache(bundle, "1.31.1");
  EXPECT_NE(make_engine_cache(bundle, "1.31.2"), first);
  write_file(bundle / "bundle.json", "abd");
  EXPECT_NE(make_engine_cache(bundle, "1.31.1"), first);
}

}  // namespace
}  // namespace intaglio
