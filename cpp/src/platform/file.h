// Open files by their descriptors, and what the standard library does not know about files. The
// functions that return a number return what the POSIX functions of that name do: it is negative
// where they fail, and errno says why.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>

namespace intaglio::platform {

struct FileStatus {
  enum class Kind { file, folder, other };
  Kind kind = Kind::other;
  std::uint64_t bytes = 0;
  std::int64_t changed = 0;              // when the content last changed, in the system's units
  std::uint64_t volume = 0, number = 0;  // no other file has both
};

int open_to_read(const std::filesystem::path& path);
// Does not wait for the writer of a pipe.
int open_at_once(const std::filesystem::path& path);
// Empties the file.
int open_to_overwrite(const std::filesystem::path& path);
// Fails where the file exists.
int create(const std::filesystem::path& path);
int duplicate(int file);
int close(int file);

std::int64_t read(int file, char* data, std::size_t bytes);
// Reads from `position`.
std::int64_t read_at(int file, char* data, std::size_t bytes, std::int64_t position);
std::int64_t write(int file, const char* data, std::size_t bytes);

// These return nothing where they fail.
std::optional<FileStatus> status(int file);
std::optional<FileStatus> status(const std::filesystem::path& path);

// Gives an open file the permissions of the one at `from`, if there is one.
void copy_permissions(const std::filesystem::path& from, int to);
// Return 0, or the number of the error that forbids to write.
int write_error(int file);
int write_error(const std::filesystem::path& file_or_folder);
// Makes a new folder for temporary files that only this user can read, and returns its path, or an
// empty path where that fails.
std::filesystem::path make_private_folder();

// Locks the file for this process alone, unless another one has locked it. Returns whether it did.
// The lock ends when the file is closed.
bool lock_alone(int file);
// Locks the file together with others who do the same, and waits for one who has it alone.
bool lock_shared(int file);
// Whether a rename can replace an existing file, as far as that is known without trying.
bool replaceable(const std::filesystem::path& file);

}  // namespace intaglio::platform
