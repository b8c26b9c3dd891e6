#include "platform/file.h"

#include <fcntl.h>
#include <io.h>

#include <algorithm>
#include <string>
#include <system_error>

#include "platform/windows/error.h"

namespace intaglio::platform {

namespace fs = std::filesystem;

namespace {

// As on other systems, a file that is open here can be renamed and deleted, which the functions of
// the C library do not allow.
int open(const fs::path& path, DWORD access, DWORD disposition, int flags) {
  const HANDLE handle =
      ::CreateFileW(path.c_str(), access, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
                    nullptr, disposition, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (handle != INVALID_HANDLE_VALUE)
    return ::_open_osfhandle(reinterpret_cast<std::intptr_t>(handle), flags | _O_BINARY);
  set_errno();
  std::error_code error;
  if (fs::is_directory(path, error)) errno = EISDIR;
  return -1;
}

HANDLE handle_of(int file) { return reinterpret_cast<HANDLE>(::_get_osfhandle(file)); }

std::uint64_t joined(DWORD high, DWORD low) { return std::uint64_t{high} << 32U | low; }

std::optional<FileStatus> status_of(HANDLE handle) {
  BY_HANDLE_FILE_INFORMATION found{};
  FileStatus status;
  if (::GetFileType(handle) != FILE_TYPE_DISK) return status;
  if (!::GetFileInformationByHandle(handle, &found)) return {};
  status.kind = (found.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY) != 0 ? FileStatus::Kind::folder
                                                                         : FileStatus::Kind::file;
  status.bytes = joined(found.nFileSizeHigh, found.nFileSizeLow);
  status.changed = static_cast<std::int64_t>(
      joined(found.ftLastWriteTime.dwHighDateTime, found.ftLastWriteTime.dwLowDateTime));
  status.volume = found.dwVolumeSerialNumber;
  status.number = joined(found.nFileIndexHigh, found.nFileIndexLow);
  return status;
}

unsigned at_once(std::size_t bytes) {  // of what the C library can read or write
  return static_cast<unsigned>(std::min(bytes, std::size_t{1} << 30U));
}

}  // namespace

int open_to_read(const fs::path& path) {
  return open(path, GENERIC_READ, OPEN_EXISTING, _O_RDONLY);
}

int open_at_once(const fs::path& path) { return open_to_read(path); }

int open_to_overwrite(const fs::path& path) {
  const int file = open(path, GENERIC_WRITE, OPEN_EXISTING, _O_WRONLY);
  if (file >= 0) ::_chsize_s(file, 0);  // which devices refuse
  return file;
}

int create(const fs::path& path) { return open(path, GENERIC_WRITE, CREATE_NEW, _O_WRONLY); }

int duplicate(int file) { return ::_dup(file); }

int close(int file) { return ::_close(file); }

std::int64_t read(int file, char* data, std::size_t bytes) {
  return ::_read(file, data, at_once(bytes));
}

std::int64_t read_at(int file, char* data, std::size_t bytes, std::int64_t position) {
  OVERLAPPED where{};
  where.Offset = static_cast<DWORD>(position & 0xffffffff);
  where.OffsetHigh = static_cast<DWORD>(position >> 32U);
  DWORD got = 0;
  if (::ReadFile(handle_of(file), data, at_once(bytes), &got, &where)) return got;
  if (::GetLastError() == ERROR_HANDLE_EOF) return 0;
  set_errno();
  return -1;
}

std::int64_t write(int file, const char* data, std::size_t bytes) {
  return ::_write(file, data, at_once(bytes));
}

std::optional<FileStatus> status(int file) { return status_of(handle_of(file)); }

std::optional<FileStatus> status(const fs::path& path) {
  const HANDLE handle =
      ::CreateFileW(path.c_str(), 0, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
                    nullptr, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, nullptr);
  if (handle == INVALID_HANDLE_VALUE) return {};
  const auto found = status_of(handle);
  ::CloseHandle(handle);
  return found;
}

void copy_permissions(const fs::path&, int) {}  // a new file has those of its folder

int write_error(int file) { return handle_of(file) == INVALID_HANDLE_VALUE ? EBADF : 0; }

int write_error(const fs::path& file_or_folder) {
  const DWORD attributes = ::GetFileAttributesW(file_or_folder.c_str());
  if (attributes == INVALID_FILE_ATTRIBUTES) return ENOENT;
  const bool folder =
      (attributes & FILE_ATTRIBUTE_DIRECTORY) != 0;  // of which the mark says nothing
  return !folder && (attributes & FILE_ATTRIBUTE_READONLY) != 0 ? EACCES : 0;
}

fs::path make_private_folder() {  // the folder for temporary files is the user's
  std::error_code error;
  const fs::path folder = fs::temp_directory_path(error);
  for (unsigned attempt = 0; !error && attempt < 100; ++attempt) {
    const auto number = static_cast<unsigned long long>(::GetTickCount64()) + attempt;
    const fs::path path = folder / ("intaglio-" + std::to_string(::GetCurrentProcessId()) + "-" +
                                    std::to_string(number));
    if (fs::create_directory(path, error)) return path;
  }
  return {};
}

bool lock_alone(int file) {
  OVERLAPPED all{};
  return ::LockFileEx(handle_of(file), LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0,
                      &all) != 0;
}

bool lock_shared(int file) {
  OVERLAPPED all{};
  return ::LockFileEx(handle_of(file), 0, 0, 1, 0, &all) != 0;
}

bool replaceable(const fs::path& file) { return write_error(file) == 0; }

}  // namespace intaglio::platform
