#include "platform/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

namespace intaglio::platform {

namespace fs = std::filesystem;

namespace {

// Calls a function of the system until no signal interrupts it.
template <typename Call>
std::int64_t uninterrupted(const Call& call) {
  std::int64_t result = 0;
  do result = call();
  while (result < 0 && errno == EINTR);
  return result;
}

FileStatus describe(const struct stat& found) {
  FileStatus status;
  if (S_ISREG(found.st_mode)) status.kind = FileStatus::Kind::file;
  if (S_ISDIR(found.st_mode)) status.kind = FileStatus::Kind::folder;
  status.bytes = static_cast<std::uint64_t>(found.st_size);
  status.changed = found.st_mtim.tv_sec * std::int64_t{1'000'000'000} + found.st_mtim.tv_nsec;
  status.volume = found.st_dev;
  status.number = found.st_ino;
  return status;
}

}  // namespace

int open_to_read(const fs::path& path) { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); }

int open_at_once(const fs::path& path) {
  return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

int open_to_overwrite(const fs::path& path) {
  return ::open(path.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC);
}

// mkstemp would create it for the owner alone, and a process can read its umask only by changing
// it, which affects all threads.
int create(const fs::path& path) {
  return ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
}

int duplicate(int file) { return ::fcntl(file, F_DUPFD_CLOEXEC, 0); }

int close(int file) { return ::close(file); }

std::int64_t read(int file, char* data, std::size_t bytes) {
  return uninterrupted([&] { return ::read(file, data, bytes); });
}

std::int64_t read_at(int file, char* data, std::size_t bytes, std::int64_t position) {
  return uninterrupted([&] { return ::pread(file, data, bytes, position); });
}

std::int64_t write(int file, const char* data, std::size_t bytes) {
  return uninterrupted([&] { return ::write(file, data, bytes); });
}

std::optional<FileStatus> status(int file) {
  struct stat found{};
  if (::fstat(file, &found) != 0) return {};
  return describe(found);
}

std::optional<FileStatus> status(const fs::path& path) {
  struct stat found{};
  if (::stat(path.c_str(), &found) != 0) return {};
  return describe(found);
}

void copy_permissions(const fs::path& from, int to) {
  struct stat found{};
  if (::stat(from.c_str(), &found) == 0) ::fchmod(to, found.st_mode & 0777);
}

int write_error(int file) {
  const int flags = ::fcntl(file, F_GETFL);
  if (flags < 0) return errno;
  return (flags & O_ACCMODE) == O_RDONLY ? EBADF : 0;
}

int write_error(const fs::path& file_or_folder) {
  return ::access(file_or_folder.c_str(), W_OK) == 0 ? 0 : errno;
}

fs::path make_private_folder() {
  std::error_code error;
  std::string name = (fs::temp_directory_path(error) / "intaglio-XXXXXX").string();
  return !error && ::mkdtemp(name.data()) ? fs::path(name) : fs::path();
}

bool lock_alone(int file) { return ::flock(file, LOCK_EX | LOCK_NB) == 0; }
bool lock_shared(int file) { return ::flock(file, LOCK_SH) == 0; }

bool replaceable(const fs::path& file) {
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  struct statx found{};
  if (::statx(AT_FDCWD, file.c_str(), 0, STATX_BASIC_STATS, &found) == 0 &&
      (found.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0)
    return false;
  struct stat around{};
  if (::stat(folder.c_str(), &around) == 0 && (around.st_mode & S_ISVTX) != 0) {
    const uid_t user = ::geteuid();  // in /tmp, users replace only their own files
    if (user != 0 && user != around.st_uid && user != found.stx_uid) return false;
  }
  return write_error(folder) == 0;
}

}  // namespace intaglio::platform
