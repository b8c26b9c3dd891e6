#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "intaglio/file.h"
#include "platform/process.h"

namespace intaglio {
namespace {

TEST(File, FollowsTheUmask) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("intaglio_mode_" + std::to_string(platform::process_id()));
  const mode_t before = ::umask(027);
  write_file(path, "content");
  ::umask(before);
  const auto mode = std::filesystem::status(path).permissions();
  EXPECT_EQ(static_cast<unsigned>(mode), 0640U);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace intaglio
