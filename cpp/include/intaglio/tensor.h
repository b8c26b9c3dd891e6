// A dense row-major tensor. Copies share its memory, as those of torch.Tensor do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace intaglio {

enum class DType { float32, int64, uint8 };
// Where the memory is. What belongs to an execution provider is read and written by graphs only,
// and its address may be a handle, so it has no views.
enum class Device { cpu, provider };

std::size_t size_of(DType dtype);
const char* name_of(DType dtype);

using Shape = std::vector<std::int64_t>;

// Throws UsageError for a negative size and OutOfMemoryError for more elements than can be counted.
std::int64_t element_count(const Shape& shape);
std::string to_string(const Shape& shape);

class Tensor {
 public:
  Tensor() = default;
  // Allocates host memory, filled with zeros.
  Tensor(Shape shape, DType dtype);
  // A view of memory that `owner` keeps alive.
  Tensor(Shape shape, DType dtype, void* data, std::shared_ptr<void> owner,
         Device device = Device::cpu);

  // False for a tensor that was constructed without arguments, which stands for no tensor.
  bool defined() const { return data_ != nullptr; }
  const Shape& shape() const;
  std::int64_t dim(std::size_t axis) const { return shape().at(axis); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  std::int64_t size() const { return element_count(shape()); }
  std::size_t bytes() const { return static_cast<std::size_t>(size()) * size_of(dtype_); }
  void* data() { return data_; }
  const void* data() const { return data_; }
  // What keeps the memory alive; for a provider's memory, its Ort::Value.
  const std::shared_ptr<void>& owner() const { return owner_; }

  // The tensor must be in host memory here, and in clone().
  std::span<float> floats();
  std::span<const float> floats() const;
  std::span<std::int64_t> int64s();
  std::span<const std::int64_t> int64s() const;

  // Returns the rows [begin, end) of the first axis, which share the memory. The tensor must be in
  // host memory here too.
  Tensor rows(std::int64_t begin, std::int64_t end) const;
  // Returns the same memory under another shape of the same size.
  Tensor reshaped(Shape shape) const;
  Tensor clone() const;

 private:
  std::shared_ptr<const Shape> shape_;  // shared, so that copies allocate nothing
  DType dtype_ = DType::float32;
  Device device_ = Device::cpu;
  void* data_ = nullptr;
  std::shared_ptr<void> owner_;
};

// Loads NumPy's .npy, version 1.0, C order: float32, float64 (converted to float32) and int64.
// Throws InputError, which names the file, if it is missing, truncated or of another kind.
Tensor load_npy(const std::filesystem::path& path);
// Writes the file under a temporary name, then renames it.
void save_npy(const std::filesystem::path& path, const Tensor& tensor);

}  // namespace intaglio
