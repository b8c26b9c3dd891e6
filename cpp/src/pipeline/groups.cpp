#include "pipeline/groups.h"

#include <algorithm>
#include <functional>
#include <ranges>
#include <utility>
#include <variant>

namespace intaglio {

std::vector<std::shared_ptr<const Request>> split_in_groups(
    LoadedPipeline& pipeline, const std::shared_ptr<const Request>& request) {
  if (!request->in_groups()) return {request};
  Request whole = *request;
  if (std::holds_alternative<PromptTexts>(whole.condition))
    whole.condition = pipeline.encode(whole);
  const LoopStart start = pipeline.start(whole);
  whole.latents = start.latents;
  whole.reference_latents = start.references;
  whole.image.reset();
  whole.references.clear();
  std::vector<std::shared_ptr<const Request>> groups;
  for (std::int64_t begin = 0; begin < whole.images; begin += whole.memory.images_at_once) {
    const std::int64_t end = std::min(begin + whole.memory.images_at_once, whole.images);
    auto group = std::make_shared<Request>(whole);
    group->images = group->latent_shape.front() = end - begin;
    group->first_image = begin;
    group->latents = whole.latents.rows(begin, end);
    groups.push_back(std::move(group));
  }
  return groups;
}

namespace {

void add(Generation& joined, const Generation& group) {
  joined.timings.text += group.timings.text;
  joined.timings.denoise += group.timings.denoise;
  joined.timings.network += group.timings.network;
  std::ranges::transform(joined.step_seconds, group.step_seconds, joined.step_seconds.begin(),
                         std::plus());
  joined.base_rows += group.base_rows;
  joined.forked_rows += group.forked_rows;
  joined.loop += group.loop;
  joined.evaluations += group.evaluations;
  joined.texts.insert(joined.texts.end(), group.texts.begin(), group.texts.end());
}

}  // namespace

Generation join_groups(const Request& request, std::vector<Generation> groups) {
  Generation joined = std::move(groups.front());
  if (groups.size() == 1) return joined;
  Tensor latents(request.latent_shape, DType::float32);
  auto next = std::ranges::copy(joined.latents.floats(), latents.floats().begin()).out;
  for (const Generation& group : groups | std::views::drop(1)) {
    next = std::ranges::copy(group.latents.floats(), next).out;
    add(joined, group);
  }
  joined.latents = std::move(latents);
  return joined;
}

}  // namespace intaglio
