// Turns latents into images and back.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/image.h"

namespace intaglio {

class VaeDecoder {
 public:
  // The bundle must have a decoder; resolve() refuses those that have none.
  VaeDecoder(const Bundle& bundle, const Backend& backend);
  // Decodes the scheduler's latents [N, C, h, w], one image at a time. An image that is larger than
  // `tile` pixels is decoded in overlapping tiles of that size, which are blended as diffusers'
  // AutoencoderKL.tiled_decode blends them.
  std::vector<Image> decode(const Tensor& latents, int tile) const;

 private:
  // The bound graphs of one call by the shape of their latents: images and tiles share them.
  struct Bound {
    Tensor latents, image;
    std::unique_ptr<BoundGraph> graph;
  };
  using Graphs = std::map<Shape, Bound>;
  Tensor decode_whole(Graphs& graphs, const Tensor& latents) const;
  Tensor decode_tiled(Graphs& graphs, const Tensor& latents, std::int64_t tile) const;

  const Latent& latent_;
  std::unique_ptr<Session> session_;
};

class VaeEncoder {
 public:
  // The bundle must have an encoder; resolve() refuses to start from a picture otherwise.
  VaeEncoder(const Bundle& bundle, const Backend& backend);
  // Encodes an image [1, 3, H, W] to the latents [1, C, h, w] that the scheduler starts from: the
  // mean of the encoder's distribution.
  Tensor encode(const Tensor& image) const;

 private:
  const Latent& latent_;
  std::unique_ptr<Session> session_;
};

}  // namespace intaglio
