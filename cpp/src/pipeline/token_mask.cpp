#include "pipeline/token_mask.h"

#include <algorithm>
#include <string>

#include "intaglio/error.h"

namespace intaglio {

Tensor make_token_mask(const std::optional<Image>& picture, std::int64_t rows,
                       std::int64_t columns) {
  Tensor mask({rows * columns}, DType::float32);
  if (!picture) {
    std::ranges::fill(mask.floats(), 1.0F);
    return mask;
  }
  if (picture->height < rows || picture->width < columns) {
    throw InputError("the picture for --ma-tokens is smaller than the token grid of " +
                     std::to_string(columns) + "x" + std::to_string(rows) + ": give a larger one");
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      const std::int64_t top = row * picture->height / rows;
      const std::int64_t bottom = (row + 1) * picture->height / rows;
      const std::int64_t left = column * picture->width / columns;
      const std::int64_t right = (column + 1) * picture->width / columns;
      double sum = 0;
      for (std::int64_t y = top; y < bottom; ++y) {
        const std::int64_t end = (y * picture->width + right) * 3;
        for (std::int64_t i = (y * picture->width + left) * 3; i < end; ++i)
          sum += picture->pixels[static_cast<std::size_t>(i)];
      }
      const double mean =
          sum / (255.0 * 3.0 * static_cast<double>((bottom - top) * (right - left)));
      mask.floats()[static_cast<std::size_t>(row * columns + column)] = static_cast<float>(mean);
    }
  }
  return mask;
}

Tensor term_mask(const Request& request) {
  Shape shape = request.latent_shape;
  shape.front() = 1;
  Tensor mask(shape, DType::float32);
  const auto values = mask.floats(), tokens = Tensor(request.token_mask).floats();
  const bool packed = shape.size() == 3;
  const std::int64_t patch = packed ? 1 : shape[2] / request.token_rows;
  for (std::int64_t i = 0; i < mask.size(); ++i) {
    const std::int64_t y = packed ? 0 : i / shape[3] % shape[2], x = packed ? 0 : i % shape[3];
    const std::int64_t token =
        packed ? i / shape[2] : y / patch * request.token_columns + x / patch;
    values[static_cast<std::size_t>(i)] = tokens[static_cast<std::size_t>(token)];
  }
  return mask;
}

}  // namespace intaglio
