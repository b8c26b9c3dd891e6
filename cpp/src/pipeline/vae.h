// Latents to images and back.
#pragma once

#include <map>
#include <memory>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"

namespace intaglio {

class VaeDecoder {
 public:
  // The bundle has one: resolve() refuses those that do not.
  VaeDecoder(const Bundle& bundle, const Backend& backend);
  // Scheduler's latents [N, C, h, w] to images [N, 3, H, W] in [-1, 1], one at a time, and in
  // overlapping tiles of `tile` pixels where an image is larger (blended as diffusers'
  // AutoencoderKL.tiled_decode does).
  Tensor decode(Stream& stream, const Tensor& latents, int tile) const;

 private:
  // The graph for each size that one call meets: all its images, or tiles, share them.
  struct Bound {
    Tensor latents, image;
    std::unique_ptr<BoundGraph> graph;
  };
  using Graphs = std::map<Shape, Bound>;
  Tensor decode_whole(Stream& stream, Graphs& graphs, const Tensor& latents) const;
  Tensor decode_tiled(Stream& stream, Graphs& graphs, const Tensor& latents,
                      std::int64_t tile) const;

  const Latent& latent_;
  std::unique_ptr<Session> session_;
};

class VaeEncoder {
 public:
  // The bundle has one: resolve() refuses a start from a picture otherwise.
  VaeEncoder(const Bundle& bundle, const Backend& backend);
  // An image [1, 3, H, W] to the latents [1, C, h, w] the scheduler starts from (the mean of the
  // encoder's distribution).
  Tensor encode(Stream& stream, const Tensor& image) const;

 private:
  const Latent& latent_;
  std::unique_ptr<Session> session_;
};

}  // namespace intaglio
