#include "intaglio/file.h"

#include <cerrno>
#include <cstring>
#include <random>

#include "core/descriptor.h"
#include "intaglio/error.h"
#include "platform/file.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

// Removes the file at `path`, unless that is empty, when it goes out of scope.
struct Removal {
  fs::path path;
  ~Removal() {
    std::error_code error;
    if (!path.empty()) fs::remove(path, error);
  }
};

// Writes everything and closes the file. Errors name `path`.
void write_all(Descriptor file, std::string_view content, const fs::path& path) {
  while (!content.empty()) {
    const std::int64_t written = platform::write(file.number(), content.data(), content.size());
    if (written < 0) fail_file("write", path, errno);
    content.remove_prefix(static_cast<std::size_t>(written));
  }
  if (file.close() != 0) fail_file("write", path, errno);
}

// Creates a file with a random name beside `target`, with the permissions of `target` if that
// exists, and sets `path` to it. The file is not open where that fails.
Descriptor create_beside(const fs::path& target, fs::path& path) {
  std::random_device random;
  while (true) {
    // A short name, since that of `target` may already have the greatest length.
    const fs::path name =
        fs::path(target).replace_filename(".intaglio-" + std::to_string(random()) + ".tmp");
    Descriptor file(platform::create(name));
    if (file.is_open()) {
      path = name;
      platform::copy_permissions(target, file.number());
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
  std::error_code error;
  fs::rename(unfinished.path, target, error);
  if (!error) unfinished.path.clear();
  return error.default_error_condition().value();
}

void write_into(const fs::path& path, std::string_view content) {
  Descriptor file(platform::open_to_overwrite(path));
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

}  // namespace

int Descriptor::close() {
  const int number = std::exchange(number_, -1);
  return number < 0 ? 0 : platform::close(number);
}

void fail_file(const std::string& verb, const fs::path& path, int error) {
  throw InputError("cannot " + verb + " " + path.string() + ": " + std::strerror(error));
}

Descriptor open_to_read(const fs::path& path) {
  Descriptor file(platform::open_to_read(path));
  if (!file.is_open()) fail_file("read", path, errno);
  return file;
}

// std::ifstream would throw an exception of its own when the path is a folder.
std::string read_file(const fs::path& path) { return read_to_end(open_to_read(path), path); }

std::string read_to_end(const Descriptor& file, const fs::path& path) {
  const auto status = platform::status(file.number());
  if (!status) fail_file("read", path, errno);
  std::string content;
  std::size_t end = 0;
  while (true) {
    // The size is only a guess: a pipe has none. One more byte than the guess lets the read that
    // meets the end of the file happen without growing the buffer.
    const std::size_t guess = static_cast<std::size_t>(status->bytes) + 1;
    if (content.size() == end) content.resize(end < guess ? guess : 2 * end + 65536);
    const std::int64_t got =
        platform::read(file.number(), content.data() + end, content.size() - end);
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
    Descriptor file(platform::duplicate(*number));
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
    if (const int why = platform::write_error(*number)) refuse(std::strerror(why));
    return;
  }
  std::error_code error;
  const fs::path folder = folder_of(end_of_links(path));
  if (!fs::is_directory(folder, error)) refuse("there is no folder " + folder.string());
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status) || path.filename().empty()) refuse("it is a folder");
  if (!fs::status_known(status)) refuse(error.message());
  const bool in_place =
      is_device_or_pipe(status) ||
      (fs::is_regular_file(status) && !platform::replaceable(fs::canonical(path, error)));
  if (const int why = platform::write_error(in_place ? path : folder)) refuse(std::strerror(why));
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
