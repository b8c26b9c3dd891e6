#include "intaglio/embedding.h"

#include <utility>

#include "core/safetensors.h"
#include "intaglio/error.h"

namespace intaglio {

namespace {

constexpr std::pair<const char*, Tensor TextConditioning::*> parts[] = {
    {"prompt_embeds", &TextConditioning::text},
    {"prompt_attention_mask", &TextConditioning::text_mask},
    {"pooled_prompt_embeds", &TextConditioning::pooled}};

// Accepts the name that diffusers gives to the mask of Qwen-Image.
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

// Moves the tensors of one prompt out of `tensors`.
TextConditioning take(NamedTensors& tensors, const std::string& prefix) {
  TextConditioning conditioning;
  for (const auto& [name, part] : parts) {
    if (auto node = tensors.extract(prefix + name)) conditioning.*part = std::move(node.mapped());
  }
  return conditioning;
}

void put(NamedTensors& tensors, const std::string& prefix, const TextConditioning& conditioning) {
  for (const auto& [name, part] : parts) {
    if ((conditioning.*part).defined()) tensors[prefix + name] = conditioning.*part;
  }
}

}  // namespace

PromptEmbeddings load_prompt_embeds(const std::filesystem::path& path) {
  NamedTensors tensors = load_safetensors(path);
  for (const char* prefix : {"", "negative_"}) rename_mask(path, tensors, prefix);
  PromptEmbeddings embeddings;
  if (!tensors.contains("prompt_embeds"))
    throw InputError(path.string() +
                     " holds no prompt_embeds: write it with `intaglio embed`, or under the names "
                     "of diffusers' arguments");
  embeddings.positive = take(tensors, "");
  TextConditioning negative = take(tensors, "negative_");
  if (negative.text.defined()) {
    embeddings.negative = std::move(negative);
  } else if (negative.pooled.defined() || negative.text_mask.defined()) {
    throw InputError(path.string() +
                     " holds a part of the negative prompt without negative_prompt_embeds: write "
                     "all of it, or none");
  }
  if (!tensors.empty()) {
    throw InputError(
        path.string() + " holds \"" + tensors.begin()->first +
        "\", which is not a prompt embedding: give prompt_embeds, prompt_attention_mask "
        "and pooled_prompt_embeds, and negative_ before each");
  }
  return embeddings;
}

void save_prompt_embeds(const std::filesystem::path& path, const PromptEmbeddings& embeddings) {
  NamedTensors tensors;
  put(tensors, "", embeddings.positive);
  if (embeddings.negative) put(tensors, "negative_", *embeddings.negative);
  save_safetensors(path, tensors);
}

}  // namespace intaglio
