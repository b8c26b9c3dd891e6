#include "backend/compiled_cache.h"

#include <algorithm>
#include <cctype>
#include <system_error>
#include <utility>

#include "core/sha256.h"
#include "intaglio/error.h"
#include "platform/file.h"
#include "platform/process.h"

namespace intaglio {

namespace fs = std::filesystem;

namespace {

constexpr const char* kLock = "lock";  // its time is that of the last use

struct Entry {
  fs::path folder;
  fs::file_time_type used;
  std::uint64_t bytes = 0;
};

// Other processes may change a folder while it is read, so errors count as "nothing there".
std::uint64_t bytes_of(const fs::path& folder) {
  std::uint64_t bytes = 0;
  std::error_code error;
  for (auto file = fs::recursive_directory_iterator(folder, error);
       !error && file != fs::recursive_directory_iterator(); file.increment(error)) {
    std::error_code gone;
    const std::uintmax_t size = file->is_regular_file(gone) ? file->file_size(gone) : 0;
    if (!gone) bytes += size;
  }
  return bytes;
}

// Returns all entries, the last used first. Folders without a lock are not ours.
std::vector<Entry> entries() {
  std::vector<Entry> found;
  std::error_code error;
  const fs::path root = compiled_cache();
  if (root.empty()) return found;
  for (const auto& entry : fs::directory_iterator(root, error)) {
    std::error_code none;
    const auto used = fs::last_write_time(entry.path() / kLock, none);
    if (!none) found.push_back({entry.path(), used, bytes_of(entry.path())});
  }
  std::ranges::sort(found, std::greater<>(), &Entry::used);
  return found;
}

Descriptor open_lock(const fs::path& folder) {
  return Descriptor(platform::open_to_read(folder / kLock));
}

// Whether the lock could be taken alone, which it can while no process uses the entry.
bool lock_alone(const Descriptor& lock) {
  return lock.is_open() && platform::lock_alone(lock.number());
}

// Whether the open file is still the one at `path`, and was not removed before it was locked.
bool is_at(const fs::path& path, const Descriptor& file) {
  const auto opened = platform::status(file.number()), found = platform::status(path);
  return opened && found && opened->volume == found->volume && opened->number == found->number;
}

bool in_use(const Entry& entry) { return !lock_alone(open_lock(entry.folder)); }

// Removes an entry unless a process uses it, and returns whether it did.
bool remove(const Entry& entry, std::error_code& error) {
  const Descriptor lock = open_lock(entry.folder);
  if (!lock_alone(lock)) return false;
  fs::remove_all(entry.folder, error);
  return !error;
}

void trim(std::uint64_t limit) {
  std::uint64_t kept = 0;
  for (const Entry& entry : entries()) {
    std::error_code error;
    if (kept + entry.bytes > limit && remove(entry, error)) continue;
    kept += entry.bytes;
  }
}

std::string file_name(std::string text) {
  std::ranges::replace_if(
      text, [](unsigned char letter) { return !std::isalnum(letter) && letter != '.'; }, '-');
  return text;
}

}  // namespace

fs::path compiled_cache() {
  const fs::path cache = platform::user_cache();
  return cache.empty() ? cache : cache / "intaglio" / "compiled";
}

CompiledEntry open_compiled(const std::string& provider, const fs::path& bundle,
                            std::uint64_t limit) {
  const fs::path root = compiled_cache();
  if (root.empty()) return {};
  // Providers compare the nodes of a graph with those of a cached one, but not the weights. The
  // manifest lists the SHA-256 of every file, so its hash changes with any weight.
  const std::string key = sha256_of_file(bundle / "bundle.json").substr(0, 16);
  CompiledEntry entry{.folder = root / (file_name(provider) + "-" + key)};
  std::error_code error;
  do {
    fs::create_directories(entry.folder, error);
    Descriptor(platform::create(entry.folder / kLock));  // unless it is there
    entry.lock = open_lock(entry.folder);
    if (!entry.lock.is_open() || !platform::lock_shared(entry.lock.number())) return {};
  } while (!is_at(entry.folder / kLock, entry.lock));
  fs::last_write_time(entry.folder / kLock, fs::file_time_type::clock::now(), error);
  entry.empty = bytes_of(entry.folder) == 0;  // the lock has no bytes
  trim(limit);
  return entry;
}

std::vector<CompiledSize> list_compiled() {
  std::vector<CompiledSize> sizes;
  for (const Entry& entry : entries())
    sizes.push_back({entry.folder.filename().string(), entry.bytes, in_use(entry)});
  return sizes;
}

std::vector<CompiledSize> clear_compiled() {
  std::vector<CompiledSize> removed;
  for (const Entry& entry : entries()) {
    std::error_code error;
    if (remove(entry, error))
      removed.push_back({entry.folder.filename().string(), entry.bytes, false});
    if (error) throw InputError("cannot remove " + entry.folder.string() + ": " + error.message());
  }
  return removed;
}

}  // namespace intaglio
