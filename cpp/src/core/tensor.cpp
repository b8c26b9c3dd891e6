#include "intaglio/tensor.h"

#include <cassert>
#include <cstring>
#include <limits>
#include <new>

#include "intaglio/error.h"

namespace intaglio {

std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return 4;
    case DType::int64:
      return 8;
    case DType::uint8:
      return 1;
  }
  assert(false);
  return 0;
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::int64:
      return "int64";
    case DType::uint8:
      return "uint8";
  }
  assert(false);
  return "";
}

std::int64_t element_count(const Shape& shape) {
  // An element has at most eight bytes, so with this limit the size in bytes cannot overflow
  // either.
  constexpr std::int64_t limit = std::numeric_limits<std::int64_t>::max() / 8;
  std::int64_t count = 1;
  bool empty = false, too_large = false;
  for (const std::int64_t size : shape) {
    if (size < 0) throw UsageError("a tensor cannot have the shape " + to_string(shape));
    empty = empty || size == 0;
    too_large = too_large || (size > 0 && count > limit / size);
    if (size > 0 && !too_large) count *= size;
  }
  if (empty) return 0;
  if (too_large) {
    throw OutOfMemoryError("a tensor of shape " + to_string(shape) +
                           " needs more memory than is available: use a smaller size or batch");
  }
  return count;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

Tensor::Tensor(Shape shape, DType dtype)
    : shape_(std::make_shared<const Shape>(std::move(shape))), dtype_(dtype) {
  const std::size_t count = bytes();
  // Vector loads and ONNX Runtime's kernels are fastest on memory aligned to a cache line.
  constexpr std::align_val_t alignment{64};
  void* memory = ::operator new(count ? count : 1, alignment, std::nothrow);
  if (!memory) {
    throw OutOfMemoryError("a tensor of shape " + to_string(*shape_) + " needs " +
                           std::to_string(count >> 20) +
                           " MiB, more than is available: use a smaller size or batch");
  }
  std::memset(memory, 0, count);
  owner_ = std::shared_ptr<void>(memory, [](void* p) { ::operator delete(p, alignment); });
  data_ = memory;
}

Tensor::Tensor(Shape shape, DType dtype, void* data, std::shared_ptr<void> owner, Device device)
    : shape_(std::make_shared<const Shape>(std::move(shape))),
      dtype_(dtype),
      device_(device),
      data_(data),
      owner_(std::move(owner)) {}

const Shape& Tensor::shape() const {
  static const Shape none;
  return shape_ ? *shape_ : none;
}

std::span<float> Tensor::floats() {
  assert(dtype_ == DType::float32 && device_ == Device::cpu);
  return {static_cast<float*>(data_), data_ ? static_cast<std::size_t>(size()) : 0};
}

std::span<const float> Tensor::floats() const {
  assert(dtype_ == DType::float32 && device_ == Device::cpu);
  return {static_cast<const float*>(data_), data_ ? static_cast<std::size_t>(size()) : 0};
}

std::span<std::int64_t> Tensor::int64s() {
  assert(dtype_ == DType::int64 && device_ == Device::cpu);
  return {static_cast<std::int64_t*>(data_), data_ ? static_cast<std::size_t>(size()) : 0};
}

std::span<const std::int64_t> Tensor::int64s() const {
  assert(dtype_ == DType::int64 && device_ == Device::cpu);
  return {static_cast<const std::int64_t*>(data_), data_ ? static_cast<std::size_t>(size()) : 0};
}

Tensor Tensor::rows(std::int64_t begin, std::int64_t end) const {
  assert(device_ == Device::cpu);
  assert(!shape().empty() && 0 <= begin && begin <= end && end <= dim(0));
  Shape part = shape();
  part[0] = end - begin;
  const std::size_t row = dim(0) ? bytes() / static_cast<std::size_t>(dim(0)) : 0;
  auto* start = static_cast<std::byte*>(data_) + row * static_cast<std::size_t>(begin);
  return Tensor(std::move(part), dtype_, start, owner_, device_);
}

Tensor Tensor::reshaped(Shape shape) const {
  assert(element_count(shape) == size());
  return Tensor(std::move(shape), dtype_, data_, owner_, device_);
}

Tensor Tensor::clone() const {
  assert(device_ == Device::cpu);
  Tensor copy(shape(), dtype_);
  if (const std::size_t count = bytes()) std::memcpy(copy.data_, data_, count);
  return copy;
}

}  // namespace intaglio
