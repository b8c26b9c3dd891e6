// Open files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

namespace intaglio {

// A file descriptor that is closed when it goes out of scope.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() { close(); }

  bool is_open() const { return number_ >= 0; }
  int number() const { return number_; }
  // Returns what close() of the system returns, whose error can be that of a delayed write.
  int close();

 private:
  int number_;
};

// Throws InputError: "cannot VERB PATH: the system's text for `error`".
[[noreturn]] void fail_file(const std::string& verb, const std::filesystem::path& path, int error);

// Opens a file to read it. Throws InputError naming `path`.
Descriptor open_to_read(const std::filesystem::path& path);
// Reads the file from its current position to its end. Throws InputError naming `path`.
std::string read_to_end(const Descriptor& file, const std::filesystem::path& path);

}  // namespace intaglio
