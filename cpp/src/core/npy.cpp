// Reads and writes NumPy's .npy format, version 1.0, which numpy.lib.format documents.
#include <cctype>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <optional>

#include "core/byte_size.h"
#include "intaglio/error.h"
#include "intaglio/file.h"
#include "intaglio/tensor.h"

namespace intaglio {

namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kPreamble = 10;  // bytes: magic, version, length of the header

struct Header {
  std::string descr;
  bool fortran = false;
  Shape shape;
  std::size_t data_offset = 0;
};

// Reads the dict in the header, whose keys come in the order in which numpy.save writes them. It
// does not use std::regex, which recurses once per character: a header may have 65,535 characters.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view text) : text_(text) {}

  bool skip(std::string_view token) {
    while (!text_.empty() && std::isspace(static_cast<unsigned char>(text_.front()))) {
      text_.remove_prefix(1);
    }
    if (!text_.starts_with(token)) return false;
    text_.remove_prefix(token.size());
    return true;
  }
  std::optional<std::string> quoted() {
    if (!skip("'")) return {};
    const std::size_t end = text_.find('\'');
    if (end == std::string_view::npos) return {};
    std::string value(text_.substr(0, end));
    text_.remove_prefix(end + 1);
    return value;
  }
  std::optional<Shape> tuple() {
    Shape shape;
    if (!skip("(")) return {};
    while (!skip(")")) {
      std::int64_t size = 0;
      const auto [stop, error] = std::from_chars(text_.data(), text_.data() + text_.size(), size);
      if (error != std::errc() || size < 0) return {};
      text_.remove_prefix(static_cast<std::size_t>(stop - text_.data()));
      shape.push_back(size);
      if (!skip(",") && !text_.starts_with(')')) return {};
      skip("");  // skips the space before the next number
    }
    return shape;
  }
  bool at_end() { return skip("") && text_.empty(); }

 private:
  std::string_view text_;
};

std::optional<Header> read_dict(std::string_view text) {
  HeaderReader reader(text);
  Header header;
  if (!reader.skip("{") || !reader.skip("'descr'") || !reader.skip(":")) return {};
  const auto descr = reader.quoted();
  if (!descr || !reader.skip(",") || !reader.skip("'fortran_order'") || !reader.skip(":"))
    return {};
  header.fortran = reader.skip("True");
  if (!header.fortran && !reader.skip("False")) return {};
  if (!reader.skip(",") || !reader.skip("'shape'") || !reader.skip(":")) return {};
  const auto shape = reader.tuple();
  if (!shape) return {};
  reader.skip(",");
  if (!reader.skip("}") || !reader.at_end()) return {};
  header.descr = *descr;
  header.shape = *shape;
  return header;
}

Header parse_header(const std::filesystem::path& path, std::string_view content) {
  const auto refuse = [&](const std::string& why) {
    throw InputError(path.string() + " " + why + ": save it with numpy.save");
  };
  if (content.substr(0, kMagic.size()) != kMagic || content.size() < kPreamble || content[6] != 1) {
    refuse("is not a .npy file of version 1.0");
  }
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(content[i]); };
  const std::size_t data_offset = kPreamble + byte(8) + (byte(9) << 8U);
  if (content.size() < data_offset) refuse("is truncated");
  auto header = read_dict(content.substr(kPreamble, data_offset - kPreamble));
  if (!header) refuse("has a header that cannot be read");
  if (header->fortran) {
    throw InputError(path.string() +
                     " is in Fortran order, as a transposed array is: save "
                     "numpy.ascontiguousarray(array) instead");
  }
  header->data_offset = data_offset;
  return *header;
}

}  // namespace

Tensor load_npy(const std::filesystem::path& path) {
  const std::string content = read_file(path);
  const Header header = parse_header(path, content);
  const bool is_double = header.descr == "<f8";
  const bool is_int64 = header.descr == "<i8";
  if (!is_double && !is_int64 && header.descr != "<f4") {
    throw InputError(path.string() + " holds values of type " + header.descr +
                     ": convert them to float32");
  }
  const std::size_t item = header.descr == "<f4" ? 4 : 8;
  // This check comes before the allocation, because a damaged header can claim any size.
  if (!has_byte_size(header.shape, item, content.size() - header.data_offset)) {
    throw InputError(path.string() + " is truncated or damaged: its data does not fit the shape " +
                     to_string(header.shape) + " in its header; save it again with numpy.save");
  }
  Tensor tensor(header.shape, is_int64 ? DType::int64 : DType::float32);
  const auto count = static_cast<std::size_t>(tensor.size());
  const char* data = content.data() + header.data_offset;
  if (!is_double) {
    if (count) std::memcpy(tensor.data(), data, tensor.bytes());
    return tensor;
  }
  for (std::size_t i = 0; i < count; ++i) {
    double value;
    std::memcpy(&value, data + 8 * i, 8);
    tensor.floats()[i] = static_cast<float>(value);
  }
  return tensor;
}

void save_npy(const std::filesystem::path& path, const Tensor& tensor) {
  std::string shape;
  for (const std::int64_t size : tensor.shape()) shape += std::to_string(size) + ", ";
  const char* descr = tensor.dtype() == DType::float32 ? "<f4"
                      : tensor.dtype() == DType::int64 ? "<i8"
                                                       : "|u1";
  std::string header =
      std::string("{'descr': '") + descr + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  // The format aligns the data to 64 bytes and ends the header with a newline.
  header.append(63 - (kPreamble + header.size()) % 64, ' ');
  header += '\n';
  std::string content(kMagic);
  content += {'\x01', '\x00', static_cast<char>(header.size() & 0xff),
              static_cast<char>(header.size() >> 8U)};
  content += header;
  content.append(static_cast<const char*>(tensor.data()), tensor.bytes());
  write_file(path, content);
}

}  // namespace intaglio
