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

// Closes the descriptor when it goes out of scope, and removes the file at `path` unless `path` is
// empty.
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

// Gives the file the permissions of the one that it will replace, if there is one.
void copy_permissions(const fs::path& from, int descriptor) {
  struct stat replaced{};
  if (::stat(from.c_str(), &replaced) == 0) ::fchmod(descriptor, replaced.st_mode & 0777);
}

// Follows symbolic links to their end, where there may be no file yet.
fs::path end_of_links(fs::path path) {
  constexpr int most_links = 40;  // as in the kernel
  std::error_code error;
  for (int link = 0; link < most_links; ++link) {
    const fs::path target = fs::read_symlink(path, error);
    if (error) break;
    path = path.parent_path() / target;  // which is `target` where that is absolute
  }
  return path;
}

// Creates a file with a random name beside `target`, which is short since the name of `target` may
// already have the greatest length. mkstemp would create it for the owner alone, and a process can
// read its umask only by changing it, which affects all threads. Errors name `requested`.
void create_beside(const fs::path& target, const fs::path& requested, OpenFile& file) {
  std::random_device random;
  while (true) {
    const fs::path path =
        fs::path(target).replace_filename(".intaglio-" + std::to_string(random()) + ".tmp");
    file.descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file.descriptor >= 0) {
      file.path = path;
      copy_permissions(target, file.descriptor);
      return;
    }
    if (errno != EEXIST) fail("write", requested, errno);
  }
}

// Writes to a device or a pipe, which renaming would replace by a regular file.
void write_into(const fs::path& path, std::string_view content) {
  OpenFile file{::open(path.c_str(), O_WRONLY | O_CLOEXEC)};
  if (file.descriptor < 0) fail("write", path, errno);
  write_all(file.descriptor, content, path);
  if (file.close() != 0) fail("write", path, errno);
}

}  // namespace

std::string read_file(const fs::path& path) {
  // std::ifstream throws an exception of its own when the path is a folder, so this uses POSIX
  // calls.
  const OpenFile file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.descriptor < 0) fail("read", path, errno);
  struct stat status{};
  if (::fstat(file.descriptor, &status) != 0) fail("read", path, errno);
  std::string content;
  std::size_t end = 0;
  while (true) {
    // The size is only a guess: a pipe has none. One more byte than the guess lets the read that
    // meets the end of the file happen without growing the buffer.
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
  if (is_device_or_pipe(status)) {
    write_into(path, content);
    return;
  }
  // A symbolic link stays; the file that it points to is replaced.
  const fs::path target = end_of_links(path);
  OpenFile file;
  create_beside(target, path, file);
  write_all(file.descriptor, content, path);
  if (file.close() != 0) fail("write", path, errno);
  if (::rename(file.path.c_str(), target.c_str()) != 0) fail("write", path, errno);
  file.path.clear();
}

bool is_device_or_pipe(const std::filesystem::file_status& status) {
  return std::filesystem::exists(status) && !std::filesystem::is_regular_file(status) &&
         !std::filesystem::is_directory(status);
}

}  // namespace intaglio
