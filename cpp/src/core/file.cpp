#include "intaglio/file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "intaglio/error.h"

namespace intaglio {

namespace {

[[noreturn]] void fail(const std::string& verb, const std::filesystem::path& path, int error) {
  throw InputError("cannot " + verb + " " + path.string() + ": " + std::strerror(error));
}

// Removes the temporary file unless it was renamed.
struct TemporaryFile {
  std::filesystem::path path;
  int descriptor = -1;
  ~TemporaryFile() {
    if (descriptor >= 0) ::close(descriptor);
    if (!path.empty()) ::unlink(path.c_str());
  }
};

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  errno = 0;
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail("read", path, errno ? errno : ENOENT);
  std::string content{std::istreambuf_iterator<char>(stream), {}};
  if (stream.bad() || std::filesystem::is_directory(path)) fail("read", path, errno ? errno : EIO);
  return content;
}

void write_file(const std::filesystem::path& path, std::string_view content) {
  std::string pattern = path.string() + ".XXXXXX";
  TemporaryFile file;
  file.descriptor = ::mkstemp(pattern.data());
  if (file.descriptor < 0) fail("write", path, errno);
  file.path = pattern;
  while (!content.empty()) {
    const ssize_t written = ::write(file.descriptor, content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write", path, errno);
    content.remove_prefix(static_cast<std::size_t>(written));
  }
  // mkstemp makes files for the owner alone; follow the umask as an ordinary file would.
  const mode_t mask = ::umask(0);
  ::umask(mask);
  if (::fchmod(file.descriptor, 0666 & ~mask) != 0) fail("write", path, errno);
  const int closed = ::close(std::exchange(file.descriptor, -1));
  if (closed != 0) fail("write", path, errno);
  if (::rename(pattern.c_str(), path.c_str()) != 0) fail("write", path, errno);
  file.path.clear();
}

}  // namespace intaglio
