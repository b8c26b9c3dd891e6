// The part of a picture around its mask, which is drawn in the run's size and put back.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/error.h"
#include "intaglio/generate_options.h"
#include "intaglio/image.h"

namespace intaglio {

// The steps are those of diffusers' inpainting pipelines with padding_mask_crop.
class MaskCrop {
 public:
  // `mask` is grey, has the size of `picture`, and is not black everywhere. The part is the
  // rectangle around the mask and `padding` pixels more, extended to the aspect ratio of a drawing
  // of width x height pixels as far as the picture allows.
  MaskCrop(Image picture, Image mask, int padding, int width, int height);

  // Returns the part of a picture of the same size, scaled to the drawing's size.
  Image cut(const Image& picture) const;
  // Returns the picture with the drawing in the mask, blended where the mask is grey.
  Image put_back(const Image& drawing) const;

  // Returns what is wrong with a part of quite another shape than the drawing, which would be
  // scaled far beyond it, or nothing.
  std::string misfit() const;

  const Image& picture() const { return picture_; }
  const Image& mask() const { return mask_; }

 private:
  Image picture_, mask_;
  int width_, height_;                               // of the drawing
  int left_ = 0, top_ = 0, right_ = 0, bottom_ = 0;  // of the part
};

// Cuts image and mask of options with defaults, and returns how, if they ask for that. The mask is
// blurred then. Adds what is wrong with the padding; set_size() and set_mask() say the rest.
std::optional<MaskCrop> crop_to_mask(const Bundle& bundle, GenerateOptions& options,
                                     std::vector<Problem>& problems);

// Scales image and mask of options with defaults to a drawing of width x height pixels, unless
// there is a part to cut. The mask is blurred before, and channels change where it is white before
// its blur. set_mask() says what is wrong with it. Returns a note if that changes the shape by more
// than a cell of `unit` pixels, else nothing.
std::string scale_to_drawing(int width, int height, int unit, GenerateOptions& options);

}  // namespace intaglio
