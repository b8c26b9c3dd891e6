// Chooses the profile of an engine that takes a request, and says why none does.
#include <algorithm>
#include <optional>
#include <string>

#include "bundle/engines.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

// An axis of an input that is outside its range.
struct Misfit {
  std::string input;
  std::string axis;  // its name in the manifest, or empty for an axis of a fixed size
  std::int64_t size = 0, min = 0, max = 0;
};

std::optional<Misfit> misfit(const EngineComponent& component, const Graph& graph, int profile,
                             const std::map<std::string, Shape>& shapes) {
  for (const EngineTensor& input : component.inputs) {
    const Shape& shape = shapes.at(input.name);
    const ShapeRange& range = input.profiles.at(static_cast<std::size_t>(profile));
    const auto& axes = std::ranges::find(graph.inputs, input.name, &GraphTensor::name)->axes;
    for (std::size_t i = 0; i < range.min.size(); ++i) {
      const bool known = i < shape.size();
      if (known && shape[i] >= range.min[i] && shape[i] <= range.max[i]) continue;
      const auto* name = i < axes.size() ? std::get_if<std::string>(&axes[i]) : nullptr;
      return Misfit{input.name, name ? *name : "", known ? shape[i] : 0, range.min[i],
                    range.max[i]};
    }
  }
  return std::nullopt;
}

std::string range_text(std::int64_t min, std::int64_t max) {
  return min == max ? "only " + std::to_string(min)
                    : std::to_string(min) + " to " + std::to_string(max);
}

std::string triple(const char* name, const std::array<int, 3>& range) {
  return std::string(name) + "=" + std::to_string(range[0]) + ":" + std::to_string(range[1]) + ":" +
         std::to_string(range[2]);
}

std::string profile_text(const ImageProfile& profile) {
  return triple("batch", profile.batch) + "," + triple("height", profile.height) + "," +
         triple("width", profile.width);
}

void widen(std::array<int, 3>& range, std::int64_t value) {
  range[0] = static_cast<int>(std::min<std::int64_t>(range[0], value));
  range[2] = static_cast<int>(std::max<std::int64_t>(range[2], value));
}

// What was asked for and what the engine takes, and the profile that would take it.
struct Refusal {
  std::string what;
  std::string profile;
};

Refusal refuse_side(const char* flag, std::array<int, 3> ImageProfile::* side, std::int64_t size,
                    ImageProfile profile) {
  const auto& range = profile.*side;
  const std::string takes = range_text(range[0], range[2]);
  widen(profile.*side, size);
  return {std::string(flag) + " " + std::to_string(size) + " is not what the engine takes, " +
              takes + " pixels",
          profile_text(profile)};
}

Refusal refuse_rows(const Misfit& wrong, ImageProfile profile) {
  // There are as many rows as images times branches, up to the end of the engine's range.
  const std::int64_t branches = std::max<std::int64_t>(1, wrong.max / profile.batch[2]);
  const std::string takes = range_text(profile.batch[0], profile.batch[2]);
  const std::int64_t images =
      wrong.size < wrong.min ? wrong.size / branches : (wrong.size + branches - 1) / branches;
  widen(profile.batch, std::max<std::int64_t>(1, images));
  return {"--batch is not what the engine takes, " + takes + " images (" +
              std::to_string(wrong.size) + " rows of " + wrong.input + " where there may be " +
              range_text(wrong.min, wrong.max) + ")",
          profile_text(profile)};
}

Refusal refusal(const Misfit& wrong, const ImageProfile& profile, int pixels) {
  if (wrong.axis == "latent_height")
    return refuse_side("--height", &ImageProfile::height, wrong.size * pixels, profile);
  if (wrong.axis == "latent_width")
    return refuse_side("--width", &ImageProfile::width, wrong.size * pixels, profile);
  if (wrong.axis == "image_height")
    return refuse_side("--height", &ImageProfile::height, wrong.size, profile);
  if (wrong.axis == "image_width")
    return refuse_side("--width", &ImageProfile::width, wrong.size, profile);
  if (wrong.axis == "rows" || wrong.axis == "base_rows") return refuse_rows(wrong, profile);
  const std::string takes =
      std::to_string(wrong.size) + " where there may be " + range_text(wrong.min, wrong.max);
  if (wrong.axis == "tokens") {
    // Only the product of the height and the width is known here.
    return {"--height and --width are not what the engine takes, " +
                range_text(profile.height[0], profile.height[2]) + " by " +
                range_text(profile.width[0], profile.width[2]) + " pixels (" + takes + " tokens)",
            triple("batch", profile.batch) + ",height=MIN:OPT:MAX,width=MIN:OPT:MAX"};
  }
  return {wrong.input + " is not of the size that the engine takes (" + takes +
              (wrong.axis.empty() ? "" : " of " + wrong.axis) + ")",
          profile_text(profile)};
}

}  // namespace

GraphEngines::Choice GraphEngines::choose(const std::map<std::string, Shape>& shapes) const {
  for (const auto& folder : folders_) {
    const EngineComponent& component = folder->components.at(graph_.path);
    for (int profile = 0; profile < static_cast<int>(folder->profiles.size()); ++profile) {
      if (!misfit(component, graph_, profile, shapes)) return {folder, &component, profile};
    }
  }
  // With several profiles, name what the last one lacks: --profile may be given several times.
  const EngineFolder& folder = *folders_.back();
  const auto last = static_cast<int>(folder.profiles.size()) - 1;
  const auto wrong = misfit(folder.components.at(graph_.path), graph_, last, shapes);
  const Refusal why = refusal(*wrong, folder.profiles.back(), pixels_);
  throw UnavailableError(why.what + ", in engines/" + folder.path.filename().string() + "/" +
                         folder.components.at(graph_.path).plan +
                         ": ask for what fits, or build a wider one with `" + build_ +
                         " --profile " + why.profile + "`");
}

}  // namespace intaglio
