#include "platform/shared_library.h"

#include <system_error>
#include <vector>

#include "platform/windows/windows.h"

namespace intaglio::platform {

namespace fs = std::filesystem;

const char* const kNvidiaDriver = "nvcuda.dll";
const char* const kNvidiaManagement = "nvml.dll";

std::string library_file(const std::string& stem, const std::string&) { return stem + ".dll"; }

void* load_library(const fs::path& library) {
  // The libraries that a library needs lie beside it, for which Windows wants a whole path.
  std::error_code error;
  if (!library.has_parent_path()) return ::LoadLibraryW(library.c_str());
  const fs::path whole = fs::absolute(library, error).lexically_normal().make_preferred();
  return ::LoadLibraryExW(whole.c_str(), nullptr, LOAD_WITH_ALTERED_SEARCH_PATH);
}

void* loaded_library(const fs::path& library) {
  std::error_code error;
  if (!library.has_parent_path()) return ::GetModuleHandleW(library.c_str());
  const fs::path whole = fs::absolute(library, error).lexically_normal().make_preferred();
  return ::GetModuleHandleW(whole.c_str());
}

std::string load_error(const fs::path& library) {
  const auto error = static_cast<int>(::GetLastError());
  return library.string() + ": " + std::system_category().message(error);
}

void unload_library(void* library) { ::FreeLibrary(static_cast<HMODULE>(library)); }

void* find_function(void* library, const char* name) {
  return reinterpret_cast<void*>(::GetProcAddress(static_cast<HMODULE>(library), name));
}

fs::path library_of(const void* address) {
  HMODULE library = nullptr;
  if (!::GetModuleHandleExW(
          GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
          static_cast<const wchar_t*>(address), &library))
    return {};
  constexpr std::size_t longest_path = 32768;
  std::vector<wchar_t> name(longest_path);
  const DWORD length = ::GetModuleFileNameW(library, name.data(), longest_path);
  return {name.data(), name.data() + length};
}

}  // namespace intaglio::platform
