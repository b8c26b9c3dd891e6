// This process, as the system knows it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace intaglio::platform {

int process_id();

// Returns the number of processors that the process may run on by its affinity, or nothing.
std::optional<int> processors();

// Returns the wall-clock seconds since this process was started, with a resolution of a hundredth
// of a second, or nothing where the system does not say.
std::optional<double> seconds_since_process_start();

// Returns the largest resident memory of this process so far, which includes mapped files, or
// nothing where the system does not say.
std::optional<std::int64_t> peak_memory_bytes();

// Returns the resident memory of this process, or 0 where the system does not say.
std::uint64_t resident_memory_bytes();

// Returns the memory that this process may still take, by what is free on the machine and by the
// limit of its address space; 0 where the system does not say.
std::uint64_t available_memory_bytes();

// Gives memory that was freed back to the system, where the C library keeps it.
void trim_memory();

// Returns the name of the processor, or an empty string where the system does not say.
std::string processor_name();

// Whether the system may have a GPU of any vendor: false only where it is known to have none.
bool may_have_gpu();

// Whether the system may have a GPU or an NPU of a vendor, such as "0x10de" on the PCI bus: false
// only where it is known to have none.
bool may_have_card_of(const std::string& vendor);

// Returns the size of the machine's memory, or 0 where the system does not say.
std::uint64_t physical_memory_bytes();

// Sets a variable of the environment, unless it is set.
void set_environment_default(const char* name, const char* value);

// Returns the folder for the user's caches, or an empty path.
std::filesystem::path user_cache();

// Makes a file that exceeds the size limit of the process an error of write(), which becomes a
// message, where the system would end the process. Returns the arguments of main() in UTF-8,
// without the name of the program.
std::vector<std::string> begin_program(int argc, char** argv);

}  // namespace intaglio::platform
