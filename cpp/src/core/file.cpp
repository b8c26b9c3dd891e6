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

// Creates a file with a random name beside `target`, and sets `path` to it. mkstemp would create it
// for the owner alone, and a process can read its umask only by changing it, which affects all
// threads. Errors name `requested`.
Descriptor create_beside(const fs::path& target, const fs::path& requested, fs::path& path) {
  std::random_device random;
  while (true) {
    const fs::path name = target.string() + "." + std::to_string(random()) + ".tmp";
    Descriptor file(::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (file.is_open()) {
      path = name;
      return file;
    }
    if (errno != EEXIST) fail_file("write", requested, errno);
  }
}

// Writes to a device or a pipe, which renaming would replace by a regular file.
void write_into(const fs::path& path, std::string_view content) {
  Descriptor file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file.is_open()) fail_file("write", path, errno);
  write_all(std::move(file), content, path);
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
  const fs::file_status status = fs::status(path, error);
  if (is_device_or_pipe(status)) {
    write_into(path, content);
    return;
  }
  // A symbolic link stays; the file that it points to is replaced.
  fs::path target = fs::canonical(path, error);
  if (error) target = path;
  Removal unfinished;
  Descriptor file = create_beside(target, path, unfinished.path);
  write_all(std::move(file), content, path);
  if (::rename(unfinished.path.c_str(), target.c_str()) != 0) fail_file("write", path, errno);
  unfinished.path.clear();
}

bool is_device_or_pipe(const std::filesystem::file_status& status) {
  return std::filesystem::exists(status) && !std::filesystem::is_regular_file(status) &&
         !std::filesystem::is_directory(status);
}

}  // namespace intaglio
