#include "intaglio/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <utility>

#include "intaglio/error.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void fail(const std::string& verb, const fs::path& path, int error) {
  throw InputError("cannot " + verb + " " + path.string() + ": " + std::strerror(error));
}

// Closes the descriptor, and removes the file at `path` unless it was cleared.
struct OpenFile {
  int descriptor = -1;
  fs::path path = {};
  ~OpenFile() {
    if (descriptor >= 0) ::close(descriptor);
    if (!path.empty()) ::unlink(path.c_str());
  }
  int close() { return ::close(std::exchange(descriptor, -1)); }
};

void write_all(int descriptor, std::string_view content, const fs::path& path) {
  while (!content.empty()) {
    const ssize_t written = ::write(descriptor, content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write", path, errno);
    content.remove_prefix(static_cast<std::size_t>(written));
  }
}

// A new file of a random name beside `target`. mkstemp would make it for the owner alone, and the
// umask cannot be asked for without changing it for every thread of the process.
void create_beside(const fs::path& target, const fs::path& named, OpenFile& file) {
  std::random_device random;
  while (true) {
    const fs::path path = target.string() + "." + std::to_string(random()) + ".tmp";
    file.descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file.descriptor >= 0) {
      file.path = path;
      return;
    }
    if (errno != EEXIST) fail("write", named, errno);
  }
}

// A device or a pipe cannot be renamed over: that would replace it by a plain file.
void write_into(const fs::path& path, std::string_view content) {
  OpenFile file{::open(path.c_str(), O_WRONLY | O_CLOEXEC)};
  if (file.descriptor < 0) fail("write", path, errno);
  write_all(file.descriptor, content, path);
  if (file.close() != 0) fail("write", path, errno);
}

}  // namespace

std::string read_file(const fs::path& path) {
  // Not a stream: reading a folder through one throws an exception of its own.
  const OpenFile file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.descriptor < 0) fail("read", path, errno);
  struct stat status{};
  if (::fstat(file.descriptor, &status) != 0) fail("read", path, errno);
  std::string content;
  std::size_t end = 0;
  while (true) {
    // The size is a guess only (a pipe has none); one byte more meets the end without growing.
    const std::size_t guess = static_cast<std::size_t>(status.st_size) + 1;
    if (content.size() == end) content.resize(end < guess ? guess : 2 * end + 65536);
    const ssize_t got = ::read(file.descriptor, content.data() + end, content.size() - end);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("read", path, errno);
    if (got == 0) break;
    end += static_cast<std::size_t>(got);
  }
  content.resize(end);
  return content;
}

void write_file(const fs::path& path, std::string_view content) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status)) {
    write_into(path, content);
    return;
  }
  // The file that a symbolic link names is what is meant, not the link.
  fs::path target = fs::canonical(path, error);
  if (error) target = path;
  OpenFile file;
  create_beside(target, path, file);
  write_all(file.descriptor, content, path);
  if (file.close() != 0) fail("write", path, errno);
  if (::rename(file.path.c_str(), target.c_str()) != 0) fail("write", path, errno);
  file.path.clear();
}

}  // namespace intaglio
