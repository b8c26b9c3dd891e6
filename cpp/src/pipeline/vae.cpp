#include "pipeline/vae.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "intaglio/error.h"

namespace intaglio {

namespace {

// Bytes of a picture have no NaN: without this check they would be black.
void require_finite(const Tensor& result, const char* what) {
  if (std::ranges::all_of(result.floats(), [](float x) { return std::isfinite(x); })) return;
  throw InputError(std::string(what) +
                   ", or export a checkpoint whose VAE is not damaged and does not overflow");
}

// Returns the window [top, top + h) x [left, left + w) of [1, C, H, W].
Tensor crop(const Tensor& source, std::int64_t top, std::int64_t left, std::int64_t height,
            std::int64_t width) {
  Tensor result({1, source.dim(1), height, width}, DType::float32);
  auto target = result.floats().begin();
  for (std::int64_t c = 0; c < source.dim(1); ++c) {
    for (std::int64_t y = 0; y < height; ++y, target += width) {
      const auto start = (c * source.dim(2) + top + y) * source.dim(3) + left;
      std::copy_n(source.floats().begin() + start, width, target);
    }
  }
  return result;
}

// Fades the first `extent` rows (axis 2) or columns (axis 3) of `tile` in from the end of `before`.
void blend(const Tensor& before, Tensor& tile, std::size_t axis, std::int64_t extent) {
  extent = std::min({extent, before.dim(axis), tile.dim(axis)});
  const std::size_t across = axis == 2 ? 3 : 2;
  const std::int64_t lines = std::min(before.dim(across), tile.dim(across));
  const auto at = [&](const Tensor& t, std::int64_t c, std::int64_t along, std::int64_t line) {
    const std::int64_t y = axis == 2 ? along : line;
    const std::int64_t x = axis == 2 ? line : along;
    return static_cast<std::size_t>((c * t.dim(2) + y) * t.dim(3) + x);
  };
  for (std::int64_t c = 0; c < tile.dim(1); ++c) {
    for (std::int64_t i = 0; i < extent; ++i) {
      const float fade = static_cast<float>(i) / static_cast<float>(extent);
      for (std::int64_t line = 0; line < lines; ++line) {
        float& value = tile.floats()[at(tile, c, i, line)];
        value =
            before.floats()[at(before, c, before.dim(axis) - extent + i, line)] * (1.0F - fade) +
            value * fade;
      }
    }
  }
}

void paste(const Tensor& tile, std::int64_t height, std::int64_t width, Tensor& image,
           std::int64_t top, std::int64_t left) {
  for (std::int64_t c = 0; c < tile.dim(1); ++c) {
    for (std::int64_t y = 0; y < height; ++y) {
      std::copy_n(tile.floats().begin() + (c * tile.dim(2) + y) * tile.dim(3), width,
                  image.floats().begin() + (c * image.dim(2) + top + y) * image.dim(3) + left);
    }
  }
}

}  // namespace

VaeDecoder::VaeDecoder(const Bundle& bundle, const Backend& backend)
    : latent_(bundle.latent), session_(backend.load(bundle, bundle.vae_decoder.value())) {}

std::vector<Image> VaeDecoder::decode(const Tensor& latents, int tile) const {
  Tensor scaled = latents.clone();
  for (float& value : scaled.floats()) {
    value = value / static_cast<float>(latent_.scaling_factor) +
            static_cast<float>(latent_.shift_factor);
  }
  const std::int64_t tile_cells = tile / latent_.vae_scale_factor;
  const bool whole = latents.dim(2) <= tile_cells && latents.dim(3) <= tile_cells;
  Graphs graphs;
  std::vector<Image> images;
  for (std::int64_t n = 0; n < latents.dim(0); ++n) {
    const Tensor one = scaled.rows(n, n + 1);
    const Tensor decoded =
        whole ? decode_whole(graphs, one) : decode_tiled(graphs, one, tile_cells);
    require_finite(decoded,
                   "the VAE decoder gave NaN or infinity in place of a picture: lower --cfg-scale "
                   "and --dg-scale");
    images.push_back(std::move(to_images(decoded).front()));
  }
  return images;
}

Tensor VaeDecoder::decode_whole(Graphs& graphs, const Tensor& latents) const {
  Bound& bound = graphs[latents.shape()];
  if (!bound.graph) {
    const std::int64_t factor = latent_.vae_scale_factor;
    bound.latents = Tensor(latents.shape(), DType::float32);
    bound.image = Tensor({1, 3, latents.dim(2) * factor, latents.dim(3) * factor}, DType::float32);
    bound.graph = session_->bind({{Role::latent, bound.latents}}, {{Role::image, bound.image}});
  }
  std::ranges::copy(latents.floats(), bound.latents.floats().begin());
  bound.graph->run();
  return bound.image.clone();
}

Tensor VaeDecoder::decode_tiled(Graphs& graphs, const Tensor& latents, std::int64_t tile) const {
  const std::int64_t factor = latent_.vae_scale_factor;
  const std::int64_t stride = tile - tile / 4;     // cells
  const std::int64_t fade = tile * factor / 4;     // pixels
  const std::int64_t kept = tile * factor - fade;  // pixels of a tile that are not blended over
  Tensor image({1, 3, latents.dim(2) * factor, latents.dim(3) * factor}, DType::float32);
  std::vector<Tensor> above;
  for (std::int64_t top = 0; top < latents.dim(2); top += stride) {
    std::vector<Tensor> row;
    for (std::int64_t left = 0; left < latents.dim(3); left += stride) {
      const std::int64_t height = std::min(tile, latents.dim(2) - top);
      const std::int64_t width = std::min(tile, latents.dim(3) - left);
      Tensor decoded = decode_whole(graphs, crop(latents, top, left, height, width));
      const std::size_t column = row.size();
      if (!above.empty()) blend(above[column], decoded, 2, fade);
      if (column > 0) blend(row[column - 1], decoded, 3, fade);
      paste(decoded, std::min(kept, decoded.dim(2)), std::min(kept, decoded.dim(3)), image,
            top * factor, left * factor);
      row.push_back(std::move(decoded));
    }
    above = std::move(row);
  }
  return image;
}

VaeEncoder::VaeEncoder(const Bundle& bundle, const Backend& backend)
    : latent_(bundle.latent), session_(backend.load(bundle, bundle.vae_encoder.value())) {}

Tensor VaeEncoder::encode(const Tensor& image) const {
  const std::int64_t factor = latent_.vae_scale_factor;
  Tensor latents({1, latent_.channels, image.dim(2) / factor, image.dim(3) / factor},
                 DType::float32);
  session_->bind({{Role::image, image}}, {{Role::latent, latents}})->run();
  for (float& value : latents.floats()) {
    value = (value - static_cast<float>(latent_.shift_factor)) *
            static_cast<float>(latent_.scaling_factor);
  }
  require_finite(latents, "the VAE encoder gave NaN or infinity for --image: give another picture");
  return latents;
}

}  // namespace intaglio
