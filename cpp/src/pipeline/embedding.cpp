#include "intaglio/embedding.h"

#include <utility>

#include "core/safetensors.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

constexpr std::pair<const char*, Tensor PromptEmbedding::*> parts[] = {
    {"prompt_embeds", &PromptEmbedding::text},
    {"prompt_attention_mask", &PromptEmbedding::text_mask},
    {"pooled_prompt_embeds", &PromptEmbedding::pooled}};

// What diffusers calls the mask of Qwen-Image.
void rename_mask(const std::filesystem::path& path, NamedTensors& tensors,
                 const std::string& prefix) {
  auto node = tensors.extract(prefix + "prompt_embeds_mask");
  if (!node) return;
  node.key() = prefix + "prompt_attention_mask";
  if (tensors.contains(node.key())) {
    throw InputError(path.string() + " holds " + node.key() + " and " + prefix +
                     "prompt_embeds_mask, which are one: leave one out");
  }
  tensors.insert(std::move(node));
}

// Moves what belongs to one prompt out of `tensors`.
PromptEmbedding take(NamedTensors& tensors, const std::string& prefix) {
  PromptEmbedding embedding;
  for (const auto& [name, part] : parts) {
    if (auto node = tensors.extract(prefix + name)) embedding.*part = std::move(node.mapped());
  }
  return embedding;
}

void put(NamedTensors& tensors, const std::string& prefix, const PromptEmbedding& embedding) {
  for (const auto& [name, part] : parts) {
    if ((embedding.*part).defined()) tensors[prefix + name] = embedding.*part;
  }
}

}  // namespace

PromptEmbeds load_prompt_embeds(const std::filesystem::path& path) {
  NamedTensors tensors = load_safetensors(path);
  for (const char* prefix : {"", "negative_"}) rename_mask(path, tensors, prefix);
  PromptEmbeds embeds;
  if (!tensors.contains("prompt_embeds"))
    throw InputError(path.string() +
                     " holds no prompt_embeds: write it with `intaglio embed`, or under the names "
                     "of diffusers' arguments");
  embeds.positive = take(tensors, "");
  PromptEmbedding negative = take(tensors, "negative_");
  if (negative.text.defined()) {
    embeds.negative = std::move(negative);
  } else if (negative.pooled.defined() || negative.text_mask.defined()) {
    throw InputError(path.string() +
                     " holds a part of the negative prompt without negative_prompt_embeds: write "
                     "all of it, or none");
  }
  if (!tensors.empty()) {
    throw InputError(path.string() + " holds \"" + tensors.begin()->first +
                     "\", which is no prompt embedding: give prompt_embeds, prompt_attention_mask "
                     "and pooled_prompt_embeds, and negative_ before each");
  }
  return embeds;
}

void save_prompt_embeds(const std::filesystem::path& path, const PromptEmbeds& embeds) {
  NamedTensors tensors;
  put(tensors, "", embeds.positive);
  if (embeds.negative) put(tensors, "negative_", *embeds.negative);
  save_safetensors(path, tensors);
}

}  // namespace intaglio
