#include "pipeline/references.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>

#include "image/resize.h"
#include "pipeline/packing.h"
#include "pipeline/request.h"

namespace intaglio {

namespace {

using Size = std::pair<int, int>;  // width and height, pixels

double aspect(const Size& size) { return static_cast<double>(size.first) / size.second; }

std::string text_of(const Size& size) {
  return std::to_string(size.first) + "x" + std::to_string(size.second);
}

Size whole_tokens(const Size& size, int unit) {
  return {size.first / unit * unit, size.second / unit * unit};
}

// The size to which a picture is scaled.
Size scaled_size(const Bundle& bundle, const Size& size) {
  const References& references = *bundle.references;
  if (!references.sizes.empty()) {
    // As FluxKontextPipeline, whose image processor rounds the size before.
    const double given = aspect(whole_tokens(size, bundle.size_multiple()));
    return *std::ranges::min_element(references.sizes, {}, [&](const Size& one) {
      return std::tuple(std::abs(given - aspect(one)), one.first, one.second);
    });
  }
  const double area = static_cast<double>(size.first) * size.second;
  if (references.max_area == 0 || area <= references.max_area) return size;
  const double scale = std::sqrt(references.max_area / area);
  return {static_cast<int>(size.first * scale), static_cast<int>(size.second * scale)};
}

// Says why a picture cannot be a reference; empty if it can.
std::string misfit(const Bundle& bundle, const Size& size) {
  const References& limits = *bundle.references;
  const auto [width, height] = reference_size(bundle, size.first, size.second);
  const int smallest = std::max(limits.min_side, bundle.size_multiple());
  if (std::min(size.first, size.second) < smallest || width == 0 || height == 0)
    return ", but a reference needs sides of " + std::to_string(smallest) +
           " pixels or more: give a larger picture";
  const double longer = std::max(aspect(size), 1 / aspect(size));
  if (limits.max_aspect > 0 && longer > limits.max_aspect)
    return ", but the longer side of a reference has up to " + std::to_string(limits.max_aspect) +
           " times the pixels of the other: cut the picture";
  return "";
}

Image fit_reference(const Bundle& bundle, const Image& picture) {
  const auto [width, height] = reference_size(bundle, picture.width, picture.height);
  if (!bundle.references->sizes.empty()) return resize(picture, width, height);
  const Size scaled = scaled_size(bundle, {picture.width, picture.height});
  return crop_middle(resize(picture, scaled.first, scaled.second), width, height);
}

std::vector<Problem> reference_problems(const Bundle& bundle, const GenerateOptions& options) {
  std::vector<Problem> problems;
  if (options.image && bundle.references && bundle.references->only)
    problems.push_back({"image", bundle.name +
                                     " takes pictures as references only, so it does not start "
                                     "from one: leave out --strength and --mask"});
  if (options.references.empty() || !problems.empty()) return problems;
  const auto count = options.references.size() + (options.image ? 1 : 0);
  const std::string given = "--image is given " + std::to_string(count) + " times";
  if (!bundle.references) {
    problems.push_back({"image", given + ", but " + bundle.name +
                                     " takes no references and starts from one picture: give one, "
                                     "or take a model such as FLUX.2 or FLUX.1 Kontext"});
  } else if (options.image) {
    problems.push_back({"image", given + ", but with --strength or --mask the run starts from one "
                                         "picture: give one, or leave these out"});
  } else if (std::cmp_greater(count, bundle.references->most)) {
    problems.push_back({"image", given + ", but " + bundle.name + " takes up to " +
                                     std::to_string(bundle.references->most) + ": give fewer"});
  } else {
    for (const Image& picture : options.references) {
      const Size size{picture.width, picture.height};
      if (const std::string why = misfit(bundle, size); !why.empty())
        problems.push_back(
            {"image", "--image is " + text_of(size) + " pixels" + why, ExitCode::bad_input});
    }
  }
  return problems;
}

}  // namespace

std::pair<int, int> reference_size(const Bundle& bundle, int width, int height) {
  return whole_tokens(scaled_size(bundle, {width, height}), bundle.size_multiple());
}

void set_references(Request& request, const Bundle& bundle, const GenerateOptions& options,
                    std::vector<Problem>& problems) {
  const std::vector<Problem> wrong = reference_problems(bundle, options);
  problems.insert(problems.end(), wrong.begin(), wrong.end());
  if (!wrong.empty()) return;
  const int unit = bundle.size_multiple();
  for (const Image& picture : options.references) {
    const Image& fitted = request.references.emplace_back(fit_reference(bundle, picture));
    request.reference_grids.emplace_back(fitted.height / unit, fitted.width / unit);
  }
}

Tensor reference_positions(const Bundle& bundle, const std::vector<Grid>& grids) {
  std::int64_t tokens = 0;
  for (const auto& [rows, columns] : grids) tokens += rows * columns;
  Tensor positions({tokens, 3}, DType::float32);
  std::int64_t first = 0;
  float time = 0;
  for (const auto& [rows, columns] : grids) {
    time += static_cast<float>(bundle.references->time);
    const Tensor own = token_positions(rows, columns);
    const auto place = positions.rows(first, first + own.dim(0)).floats();
    std::ranges::copy(own.floats(), place.begin());
    for (std::size_t i = 0; i < place.size(); i += 3) place[i] = time;
    first += own.dim(0);
  }
  return positions;
}

}  // namespace intaglio
