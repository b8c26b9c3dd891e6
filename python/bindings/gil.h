// Python's global interpreter lock (GIL), around work that does not need Python.
#pragma once

#include <Python.h>
#include <cxxabi.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace intaglio::python {

// Set when the interpreter has ended, after which none of its functions may be called.
inline std::atomic<bool> interpreter_ended = false;

[[noreturn]] inline void stop_thread() {
  while (true) std::this_thread::sleep_for(std::chrono::hours(24));
}

// Calls `function`, which takes the GIL or runs Python code, which takes it from time to time. In a
// process that ends, Python 3.13 and older end a thread that asks for the GIL by unwinding its
// stack. Destructors of C++ do not survive that: they would abort the process, or drop references
// without the GIL. Here the thread stops instead, as in Python 3.14. So `function` must own
// nothing.
template <typename Function>
auto or_stop_thread(const Function& function) {
  if (interpreter_ended) stop_thread();
  try {
    return function();
  } catch (const abi::__forced_unwind&) {
    stop_thread();  // leaving this handler would end the process
  }
}

// Has to be called once by each module that uses this file.
inline void watch_interpreter() {
  Py_AtExit([] { interpreter_ended = true; });
}

// Gives the GIL back while it exists.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;
  ~ReleasedGil() {
    or_stop_thread([this] { PyEval_RestoreThread(state_); });
  }

 private:
  PyThreadState* state_;
};

// Holds the GIL while it exists, in any thread.
class HeldGil {
 public:
  HeldGil() : state_(or_stop_thread([] { return PyGILState_Ensure(); })) {}
  HeldGil(const HeldGil&) = delete;
  HeldGil& operator=(const HeldGil&) = delete;
  ~HeldGil() { PyGILState_Release(state_); }

 private:
  PyGILState_STATE state_;
};

}  // namespace intaglio::python
