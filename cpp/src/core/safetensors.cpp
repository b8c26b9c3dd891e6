#include "core/safetensors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "core/byte_size.h"
#include "intaglio/error.h"
#include "intaglio/file.h"

namespace intaglio {

namespace {

using Json = nlohmann::json;

constexpr std::size_t kPreamble = 8;  // bytes that hold the length of the header, little-endian
constexpr std::size_t kMaxAxes = 8;
constexpr std::int64_t kMaxElements = std::int64_t{1} << 31U;  // larger than any embedding

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& why) {
  throw InputError(path.string() + " " + why +
                   ": write it again with safetensors or `intaglio embed`");
}

float from_bfloat16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
}

float from_float16(std::uint16_t bits) {
  const int exponent = (bits >> 10U) & 0x1f;
  const int fraction = bits & 0x3ff;
  float value =
      std::ldexp(static_cast<float>(fraction + (exponent ? 0x400 : 0)), std::max(exponent, 1) - 25);
  if (exponent == 0x1f) value = fraction ? NAN : INFINITY;
  return bits & 0x8000U ? -value : value;
}

template <typename T, typename Convert>
void convert(const char* data, std::span<float> values, Convert&& to_float) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    T value;
    std::memcpy(&value, data + i * sizeof(T), sizeof(T));
    values[i] = to_float(value);
  }
}

struct Entry {
  std::string name, dtype;
  Shape shape;
  std::size_t begin = 0, end = 0;  // offsets in the data
};

// Throws when a value has another type or is out of range; read_header turns that into a message.
Entry read_entry(const std::string& name, const Json& json) {
  Entry entry;
  entry.name = Json(name).dump();
  entry.dtype = json.at("dtype").get<std::string>();
  for (const Json& size : json.at("shape")) {
    if (!size.is_number_unsigned() || !std::in_range<std::int64_t>(size.get<std::uint64_t>()))
      throw InputError("shape");
    entry.shape.push_back(size.get<std::int64_t>());
  }
  const Json& offsets = json.at("data_offsets");
  if (offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned())
    throw InputError("offsets");
  entry.begin = offsets[0].get<std::size_t>();
  entry.end = offsets[1].get<std::size_t>();
  return entry;
}

// Returns the entries in the order of the header, without __metadata__.
std::vector<std::pair<std::string, Entry>> read_header(const std::filesystem::path& path,
                                                       std::string_view text) {
  std::vector<std::pair<std::string, Entry>> entries;
  try {
    const Json json = Json::parse(text);
    if (!json.is_object()) refuse(path, "has a header that cannot be read");
    for (const auto& [name, value] : json.items()) {
      if (name != "__metadata__") entries.emplace_back(name, read_entry(name, value));
    }
  } catch (const std::exception&) {
    refuse(path, "has a header that cannot be read");
  }
  return entries;
}

std::size_t item_size(const std::string& dtype) {
  if (dtype == "F32") return 4;
  if (dtype == "F16" || dtype == "BF16") return 2;
  if (dtype == "BOOL") return 1;
  return dtype == "I64" ? 8 : 0;
}

// Whether the shape exceeds the limits above. A size of 0 counts as 1, because NumPy also refuses
// arrays without elements whose other sizes are too large.
bool is_too_large(const Shape& shape) {
  std::int64_t elements = 1;
  for (const std::int64_t size : shape) {
    if (size > kMaxElements / elements) return true;
    elements *= std::max<std::int64_t>(size, 1);
  }
  return shape.size() > kMaxAxes;
}

bool fits(const Entry& entry) {
  return has_byte_size(entry.shape, item_size(entry.dtype), entry.end - entry.begin);
}

Tensor read_tensor(const Entry& entry, std::string_view data) {
  Tensor tensor(entry.shape, DType::float32);
  const char* start = data.data() + entry.begin;
  if (entry.dtype == "F16") {
    convert<std::uint16_t>(start, tensor.floats(), from_float16);
  } else if (entry.dtype == "BF16") {
    convert<std::uint16_t>(start, tensor.floats(), from_bfloat16);
  } else if (entry.dtype == "I64") {
    convert<std::int64_t>(start, tensor.floats(), [](auto x) { return static_cast<float>(x); });
  } else if (entry.dtype == "BOOL") {
    convert<std::uint8_t>(start, tensor.floats(), [](auto x) { return static_cast<float>(x); });
  } else {
    convert<float>(start, tensor.floats(), [](float x) { return x; });
  }
  return tensor;
}

std::uint64_t header_length(std::string_view content) {
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kPreamble; ++i)
    length |= std::uint64_t{static_cast<unsigned char>(content[i])} << (8 * i);
  return length;
}

}  // namespace

NamedTensors load_safetensors(const std::filesystem::path& path) {
  const std::string content = read_file(path);
  if (content.size() < kPreamble) refuse(path, "is not a safetensors file");
  const std::uint64_t length = header_length(content);
  if (length > content.size() - kPreamble)
    refuse(path, "is truncated or is not a safetensors file");
  const std::string_view all(content);
  const std::string_view data = all.substr(kPreamble + length);
  auto entries = read_header(path, all.substr(kPreamble, length));
  std::ranges::sort(entries, {}, [](const auto& entry) { return entry.second.begin; });

  // The format requires that the tensors follow each other without gaps and fill the data.
  NamedTensors tensors;
  std::size_t end = 0;
  for (const auto& [name, entry] : entries) {
    if (item_size(entry.dtype) == 0)
      refuse(path, "holds " + entry.name + " of a type other than F32, F16, BF16, I64 and BOOL");
    if (is_too_large(entry.shape))
      refuse(path, "holds " + entry.name + " with more than 8 axes or more than 2^31 elements");
    if (entry.begin != end || entry.end < entry.begin || entry.end > data.size() || !fits(entry))
      refuse(path, "is damaged or truncated at " + entry.name);
    end = entry.end;
    tensors[name] = read_tensor(entry, data);
  }
  if (end != data.size()) refuse(path, "is damaged: it has more data after its last tensor");
  return tensors;
}

void save_safetensors(const std::filesystem::path& path, const NamedTensors& tensors) {
  Json json = Json::object();
  std::size_t end = 0;
  for (const auto& [name, tensor] : tensors) {
    if (tensor.dtype() != DType::float32) {
      throw InputError(path.string() + " cannot hold " + name + " as " + name_of(tensor.dtype()) +
                       ": convert it to float32");
    }
    json[name] = {
        {"dtype", "F32"}, {"shape", tensor.shape()}, {"data_offsets", {end, end + tensor.bytes()}}};
    end += tensor.bytes();
  }
  std::string header = json.dump();
  header.append((8 - header.size() % 8) % 8, ' ');  // aligns the data to 8 bytes
  std::string content;
  for (std::size_t i = 0; i < kPreamble; ++i)
    content += static_cast<char>(static_cast<std::uint64_t>(header.size()) >> (8 * i) & 0xff);
  content += header;
  for (const auto& [name, tensor] : tensors)
    content.append(static_cast<const char*>(tensor.data()), tensor.bytes());
  write_file(path, content);
}

}  // namespace intaglio
