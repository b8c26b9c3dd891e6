// Shared libraries that are loaded while the program runs.
#pragma once

#include <filesystem>
#include <string>

namespace intaglio::platform {

// The file of the NVIDIA driver's library.
extern const char* const kNvidiaDriver;
// NVML, which comes with it.
extern const char* const kNvidiaManagement;

// Returns the file name of a library: libSTEM.so, or libSTEM.so.VERSION, or STEM.dll on Windows.
std::string library_file(const std::string& stem, const std::string& version = "");

// Return nullptr where the library cannot be loaded, or is not loaded. A path without a folder is
// looked up where the system looks for libraries.
void* load_library(const std::filesystem::path& library);
void* loaded_library(const std::filesystem::path& library);
// Returns why load_library() failed in this thread, with the name of the library.
std::string load_error(const std::filesystem::path& library);
void unload_library(void* library);

// Returns nullptr where the library has no such function.
void* find_function(void* library, const char* name);
// Returns the file that `address` was loaded from, or an empty path.
std::filesystem::path library_of(const void* address);

}  // namespace intaglio::platform
