#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "core/usable_cpus.h"

namespace intaglio {
namespace {

namespace fs = std::filesystem;
using testing::Optional;

class CgroupQuota : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(mounts_); }
  void TearDown() override { fs::remove_all(mounts_); }

  void write(const std::map<std::string, std::string>& files) const {
    for (const auto& [name, content] : files) {
      fs::create_directories((mounts_ / name).parent_path());
      std::ofstream(mounts_ / name) << content;
    }
  }

  fs::path mounts_ =
      fs::temp_directory_path() /
      ("cgroup-" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
};

TEST_F(CgroupQuota, Version2) {
  write({{"a/b/cpu.max", "150000 100000\n"}, {"a/cpu.max", "max 100000\n"}});
  EXPECT_THAT(cgroup_quota(mounts_, "0::/a/b\n"), Optional(1.5));
  EXPECT_EQ(cgroup_quota(mounts_, "0::/a\n"), std::nullopt);
}

TEST_F(CgroupQuota, OfAGroupAround) {
  write(
      {{"cpu.max", "300000 100000\n"}, {"a/cpu.max", "50000 25000\n"}, {"a/b/cpu.max", "max 9\n"}});
  EXPECT_THAT(cgroup_quota(mounts_, "0::/a/b\n"), Optional(2.0));
  EXPECT_THAT(cgroup_quota(mounts_, "0::/a/gone/gone\n"), Optional(2.0));
  EXPECT_THAT(cgroup_quota(mounts_, "0::/\n"), Optional(3.0));
}

TEST_F(CgroupQuota, Version1) {
  write({{"cpu,cpuacct/docker/c/cpu.cfs_quota_us", "200000\n"},
         {"cpu,cpuacct/docker/c/cpu.cfs_period_us", "100000\n"},
         {"cpu,cpuacct/cpu.cfs_quota_us", "-1\n"},
         {"cpu,cpuacct/cpu.cfs_period_us", "100000\n"},
         {"cpuset/cpu.cfs_quota_us", "1\n"}});
  const std::string others = "12:cpuset:/docker/c\n11:pids:/docker/c\n";
  EXPECT_THAT(cgroup_quota(mounts_, others + "4:cpu,cpuacct:/docker/c\n0::/\n"), Optional(2.0));
  EXPECT_EQ(cgroup_quota(mounts_, others + "4:cpu,cpuacct:/\n"), std::nullopt);
}

TEST_F(CgroupQuota, NothingOrNonsense) {
  write({{"a/cpu.max", ""}, {"b/cpu.max", "some text"}, {"c/cpu.max", "1"}});
  for (const char* text : {"", "\n", "0:", "0::", "0::/none\n", "0::/a\n", "0::/b\n", "0::/c\n"})
    EXPECT_EQ(cgroup_quota(mounts_, text), std::nullopt) << text;
}

TEST(UsableCpus, AreAtLeastOne) { EXPECT_GE(usable_cpus(), 1); }

}  // namespace
}  // namespace intaglio
