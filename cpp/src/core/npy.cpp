// NumPy's .npy format, version 1.0 (numpy.lib.format).
#include <cstdint>
#include <cstring>
#include <regex>

#include "intaglio/error.h"
#include "intaglio/file.h"
#include "intaglio/tensor.h"

namespace intaglio {

namespace {

constexpr std::string_view magic = "\x93NUMPY";
constexpr std::size_t preamble = 10;  // magic, two version bytes, header length

struct Header {
  std::string descr;
  Shape shape;
  std::size_t data_offset = 0;
};

Header parse_header(const std::filesystem::path& path, std::string_view content) {
  const auto refuse = [&](const std::string& why) {
    throw InputError(path.string() + " " + why + ": save it with numpy.save");
  };
  if (content.substr(0, magic.size()) != magic || content.size() < preamble || content[6] != 1) {
    refuse("is not a .npy file of version 1.0");
  }
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(content[i]); };
  Header header;
  header.data_offset = preamble + byte(8) + (byte(9) << 8U);
  if (content.size() < header.data_offset) refuse("is truncated");
  const std::string text(content.substr(preamble, header.data_offset - preamble));
  static const std::regex form(
      R"(^\s*\{'descr': '([^']+)', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\),? *\}\s*$)");
  std::smatch match;
  if (!std::regex_match(text, match, form)) refuse("has a header that cannot be read");
  if (match[2] == "True") refuse("is in Fortran order");
  header.descr = match[1];
  const std::string sizes = match[3];
  static const std::regex number("[0-9]{1,12}");
  for (auto it = std::sregex_iterator(sizes.begin(), sizes.end(), number);
       it != std::sregex_iterator(); ++it) {
    header.shape.push_back(std::stoll(it->str()));
  }
  return header;
}

}  // namespace

Tensor load_npy(const std::filesystem::path& path) {
  const std::string content = read_file(path);
  const Header header = parse_header(path, content);
  const bool is_double = header.descr == "<f8";
  const bool is_int64 = header.descr == "<i8";
  if (!is_double && !is_int64 && header.descr != "<f4") {
    throw InputError(path.string() + " holds " + header.descr + ": give float32");
  }
  Tensor tensor(header.shape, is_int64 ? DType::int64 : DType::float32);
  const auto count = static_cast<std::size_t>(tensor.size());
  if (content.size() != header.data_offset + count * (is_double ? 8 : size_of(tensor.dtype()))) {
    throw InputError(path.string() + " is truncated: its header says shape " +
                     to_string(header.shape));
  }
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
  // The data starts at a multiple of 64; a newline ends the header.
  header.append(63 - (preamble + header.size()) % 64, ' ');
  header += '\n';
  std::string content(magic);
  content += {'\x01', '\x00', static_cast<char>(header.size() & 0xff),
              static_cast<char>(header.size() >> 8U)};
  content += header;
  content.append(static_cast<const char*>(tensor.data()), tensor.bytes());
  write_file(path, content);
}

}  // namespace intaglio
