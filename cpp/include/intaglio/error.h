// Errors that a caller can cause. Each has the exit code that the command line ends with.
#pragma once

#include <stdexcept>
#include <string>

namespace intaglio {

enum class ExitCode : int {
  ok = 0,
  usage = 2,
  bad_input = 3,
  unavailable = 4,
  out_of_memory = 5,
  interrupted = 130,
};

// The message is one sentence that says what is wrong, with which file or flag, and what to do. A
// bug fails an assertion instead.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

// A call or a flag that makes no sense: steps 0, an unknown scheduler.
class UsageError : public Error {
 public:
  explicit UsageError(const std::string& message) : Error(ExitCode::usage, message) {}
};

// A file, bundle, prompt or tensor that cannot be used.
class InputError : public Error {
 public:
  explicit InputError(const std::string& message) : Error(ExitCode::bad_input, message) {}
};

// A device, backend or library that is missing.
class UnavailableError : public Error {
 public:
  explicit UnavailableError(const std::string& message) : Error(ExitCode::unavailable, message) {}
};

class OutOfMemoryError : public Error {
 public:
  explicit OutOfMemoryError(const std::string& message) : Error(ExitCode::out_of_memory, message) {}
};

// The caller or Ctrl-C stopped the run.
class Interrupted : public Error {
 public:
  explicit Interrupted(const std::string& message) : Error(ExitCode::interrupted, message) {}
};

// What is wrong with one option of a request.
struct Problem {
  std::string field;                // the option's name in Python and JSON
  std::string message;              // one sentence: what is wrong and what to do
  ExitCode code = ExitCode::usage;  // of the error that it becomes
};

// Throws the UsageError or InputError that the problem stands for.
[[noreturn]] void throw_problem(const Problem& problem);

}  // namespace intaglio
