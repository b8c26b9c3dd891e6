#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "backend/compiled_cache.h"
#include "intaglio/file.h"

namespace intaglio {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::IsEmpty;

class CompiledCache : public testing::Test {
 protected:
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

  // Keeps so many bytes for a provider that was last used so many minutes ago.
  void keep(const std::string& provider, std::size_t bytes, int minutes) const {
    const CompiledEntry entry = open_compiled(provider, bundle);
    write_file(entry.folder / "engine", std::string(bytes, 'x'));
    fs::last_write_time(entry.folder / "lock",
                        fs::file_time_type::clock::now() - std::chrono::minutes(minutes));
  }
  static std::vector<std::string> names() {
    std::vector<std::string> names;
    for (const CompiledSize& entry : list_compiled())
      names.push_back(entry.name.substr(0, entry.name.find('-')));
    return names;
  }
};

TEST_F(CompiledCache, IsInTheUsersFolder) {
  // The key is the start of FIPS 180-2's example, the SHA-256 of "abc".
  const fs::path name = "intaglio/compiled/tensorrt-1.31.1-ba7816bf8f01cfea";
  EXPECT_EQ(open_compiled("tensorrt 1.31.1", bundle).folder, root / "cache" / name);
  ::setenv("XDG_CACHE_HOME", "relative", 1);
  EXPECT_EQ(open_compiled("tensorrt/1.31.1", bundle).folder, root / "home/.cache" / name);
  EXPECT_FALSE(fs::exists(bundle / "engines"));
}

TEST_F(CompiledCache, KeepsNothingWithoutAWritableFolder) {
  write_file(root / "cache", "");  // not even root can create a folder there
  EXPECT_EQ(open_compiled("tensorrt", bundle).folder, fs::path());
  ::unsetenv("XDG_CACHE_HOME");
  ::unsetenv("HOME");
  EXPECT_EQ(open_compiled("tensorrt", bundle).folder, fs::path());
  EXPECT_THAT(list_compiled(), IsEmpty());
}

TEST_F(CompiledCache, DiffersForAnotherBundleOrVersion) {
  const fs::path first = open_compiled("tensorrt 1", bundle).folder;
  EXPECT_NE(open_compiled("tensorrt 2", bundle).folder, first);
  write_file(bundle / "bundle.json", "abd");
  EXPECT_NE(open_compiled("tensorrt 1", bundle).folder, first);
}

TEST_F(CompiledCache, IsEmptyUntilSomethingWasCompiled) {
  EXPECT_TRUE(open_compiled("tensorrt", bundle).empty);
  EXPECT_TRUE(open_compiled("tensorrt", bundle).empty);
  keep("tensorrt", 1, 0);
  EXPECT_FALSE(open_compiled("tensorrt", bundle).empty);
}

TEST_F(CompiledCache, DropsWhatWasNotUsedForLongest) {
  keep("old", 40, 30);
  keep("older", 40, 40);
  keep("oldest", 40, 50);
  open_compiled("new", bundle, 100);
  EXPECT_THAT(names(), ElementsAre("new", "old", "older"));
  open_compiled("older", bundle);  // it is used again
  open_compiled("new", bundle, 40);
  EXPECT_THAT(names(), ElementsAre("new", "older"));
}

TEST_F(CompiledCache, LeavesWhatIsInUse) {
  keep("idle", 40, 20);
  keep("used", 40, 30);
  const CompiledEntry used = open_compiled("used", bundle);
  fs::last_write_time(used.folder / "lock",
                      fs::file_time_type::clock::now() - std::chrono::minutes(30));
  open_compiled("new", bundle, 10);
  EXPECT_THAT(names(), ElementsAre("new", "used"));
  clear_compiled();
  EXPECT_THAT(names(), ElementsAre("used"));
  EXPECT_TRUE(list_compiled().at(0).in_use);
}

TEST_F(CompiledCache, ClearsItsOwnFoldersOnly) {
  keep("one", 40, 20);
  write_file(compiled_cache() / "notes", "mine");
  const auto removed = clear_compiled();
  ASSERT_EQ(removed.size(), 1);
  EXPECT_EQ(removed[0].bytes, 40);
  EXPECT_TRUE(fs::exists(compiled_cache() / "notes"));
  EXPECT_THAT(list_compiled(), IsEmpty());
}

}  // namespace
}  // namespace intaglio
