#include "intaglio/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>

#include "core/descriptor.h"
#include "intaglio/error.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

// Removes the file at `path`, unless that is empty, when it goes out of scope.
struct Removal {
  fs::path path;
  ~Removal() {
    if (!path.empty()) ::unlink(path.c_str());
  }
};

// Writes everything and closes the file. Errors name `path`.
void write_all(Descriptor file, std::string_view content, const fs::path& path) {
  while (!content.empty()) {
    const ssize_t written = ::write(file.number(), content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_file("write", path, errno);
    content.remove_prefix(static_cast<std::size_t>(written));
  }
  if (file.close() != 0) fail_file("write", path, errno);
}

// Gives the file the permissions of the one that it will replace, if there is one.
void copy_permissions(const fs::path& from, const Descriptor& file) {
  struct stat replaced{};
  if (::stat(from.c_str(), &replaced) == 0) ::fchmod(file.number(), replaced.st_mode & 0777);
}

// Creates a file with a random name beside `target`, and sets `path` to it; the file is not open
// where that fails. mkstemp would create it for the owner alone, and a process can read its umask
// only by changing it, which affects all threads.
Descriptor create_beside(const fs::path& target, fs::path& path) {
  std::random_device random;
  while (true) {
    // A short name, since that of `target` may already have the greatest length.
    const fs::path name =
        fs::path(target).replace_filename(".intaglio-" + std::to_string(random()) + ".tmp");
    Descriptor file(::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (file.is_open()) {
      path = name;
      copy_permissions(target, file);
    }
    if (file.is_open() || errno != EEXIST) return file;
  }
}

// Writes a new file and renames it onto `target`. Returns 0, or the system's error where no file
// can be created there or renamed. Throws where the content cannot be written; errors name
// `requested`.
int replace(const fs::path& target, const fs::path& requested, std::string_view content) {
  Removal unfinished;
  Descriptor file = create_beside(target, unfinished.path);
  if (!file.is_open()) return errno;
  write_all(std::move(file), content, requested);
  if (::rename(unfinished.path.c_str(), target.c_str()) != 0) return errno;
  unfinished.path.clear();
  return 0;
}

void write_into(const fs::path& path, std::string_view content) {
  Descriptor file(::open(path.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC));
  if (!file.is_open()) fail_file("write", path, errno);
  write_all(std::move(file), content, path);
}

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
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

// Whether a rename can replace an existing file, as far as that is known without trying.
bool replaceable(const fs::path& file) {
  const fs::path folder = folder_of(file);
  struct statx found{};
  if (::statx(AT_FDCWD, file.c_str(), 0, STATX_BASIC_STATS, &found) == 0 &&
      (found.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0)
    return false;
  struct stat around{};
  if (::stat(folder.c_str(), &around) == 0 && (around.st_mode & S_ISVTX) != 0) {
    const uid_t user = ::geteuid();  // in /tmp, users replace only their own files
    if (user != 0 && user != around.st_uid && user != found.stx_uid) return false;
  }
  return ::access(folder.c_str(), W_OK) == 0;
}

}  // namespace

int Descriptor::close() {
  const int number = std::exchange(number_, -1);
  return number < 0 ? 0 : ::close(number);
}

void fail_file(const std::string& verb, const fs::path& path, int error) {
  throw InputError("cannot " + verb + " " + path.string() + ": " + std::strerror(error));
}

Descriptor open_to_read(const fs::path& path) {
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.is_open()) fail_file("read", path, errno);
  return file;
}

// std::ifstream would throw an exception of its own when the path is a folder.
std::string read_file(const fs::path& path) { return read_to_end(open_to_read(path), path); }

std::string read_to_end(const Descriptor& file, const fs::path& path) {
  struct stat status{};
  if (::fstat(file.number(), &status) != 0) fail_file("read", path, errno);
  std::string content;
  std::size_t end = 0;
  while (true) {
    // The size is only a guess: a pipe has none. One more byte than the guess lets the read that
    // meets the end of the file happen without growing the buffer.
    const std::size_t guess = static_cast<std::size_t>(status.st_size) + 1;
    if (content.size() == end) content.resize(end < guess ? guess : 2 * end + 65536);
    const ssize_t got = ::read(file.number(), content.data() + end, content.size() - end);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_file("read", path, errno);
    if (got == 0) break;
    end += static_cast<std::size_t>(got);
  }
  content.resize(end);
  return content;
}

void write_file(const fs::path& path, std::string_view content) {
  std::error_code error;
  if (const auto number = own_descriptor(path)) {
    // Another open file of that path would begin at its start, over what is there already.
    Descriptor file(::fcntl(*number, F_DUPFD_CLOEXEC, 0));
    if (!file.is_open()) fail_file("write", path, errno);
    return write_all(std::move(file), content, path);
  }
  const fs::file_status status = fs::status(path, error);
  if (is_device_or_pipe(status)) return write_into(path, content);
  // A symbolic link stays; the file that it points to is replaced.
  const int why = replace(end_of_links(path), path, content);
  if (why == 0) return;
  if (!fs::is_regular_file(status)) fail_file("write", path, why);
  write_into(path, content);
}

void check_writable(const fs::path& path) {
  const auto refuse = [&](const std::string& why) {
    throw InputError("cannot write " + path.string() + ": " + why);
  };
  if (const auto number = own_descriptor(path)) {
    const int flags = ::fcntl(*number, F_GETFL);
    if (flags < 0) refuse(std::strerror(errno));
    if ((flags & O_ACCMODE) == O_RDONLY) refuse(std::strerror(EBADF));
    return;
  }
  std::error_code error;
  const fs::path folder = folder_of(end_of_links(path));
  if (!fs::is_directory(folder, error)) refuse("there is no folder " + folder.string());
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status) || path.filename().empty()) refuse("it is a folder");
  if (!fs::status_known(status)) refuse(error.message());
  const bool in_place = is_device_or_pipe(status) ||
                        (fs::is_regular_file(status) && !replaceable(fs::canonical(path, error)));
  if (::access((in_place ? path : folder).c_str(), W_OK) != 0) refuse(std::strerror(errno));
}

std::optional<int> own_descriptor(const fs::path& path) {
  std::error_code error;
  const fs::path own = fs::canonical("/proc/self/fd", error);
  if (error) return {};
  constexpr int most_links = 40;  // as in the kernel
  fs::path at = path;
  for (int link = 0; link < most_links; ++link) {
    const std::string name = at.filename().string();
    if (fs::canonical(folder_of(at), error) == own && !name.empty() && name.size() < 9 &&
        name.find_first_not_of("0123456789") == std::string::npos)
      return std::stoi(name);
    const fs::path target = fs::read_symlink(at, error);
    if (error) return {};
    at = folder_of(at) / target;  // which is `target` where that is absolute
  }
  return {};
}

bool is_device_or_pipe(const std::filesystem::file_status& status) {
  return std::filesystem::exists(status) && !std::filesystem::is_regular_file(status) &&
         !std::filesystem::is_directory(status);
}

}  // namespace intaglio
