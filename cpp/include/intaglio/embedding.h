// The embeddings that text encoders make from a prompt, and the file that holds them.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "intaglio/tensor.h"

namespace intaglio {

// The transformer's inputs that come from one text, float32. An input that the model does not have
// is not defined().
struct TextConditioning {
  Tensor text;       // [1, S, D]
  Tensor text_mask;  // [1, S]: 1 for tokens, 0 for padding
  Tensor pooled;     // [1, P]
};

struct PromptEmbeddings {
  TextConditioning positive;
  std::optional<TextConditioning> negative;  // needed by runs with CFG
  // Of the prompt that massive channels come from; not in the file.
  std::optional<TextConditioning> source = {};
  std::vector<std::string> notes = {};  // warnings about truncated prompts; not in the file
};

// The old names, kept for one version.
using PromptEmbedding = TextConditioning;
using PromptEmbeds = PromptEmbeddings;

// Reads safetensors of F32, F16, BF16, I64 or BOOL under the names of diffusers' arguments:
// prompt_embeds, prompt_attention_mask (or prompt_embeds_mask) and pooled_prompt_embeds, and the
// same with negative_ before them. Throws InputError naming the file.
PromptEmbeddings load_prompt_embeds(const std::filesystem::path& path);
// Writes F32 under a temporary name, then renames it. Throws InputError for tensors of another
// type.
void save_prompt_embeds(const std::filesystem::path& path, const PromptEmbeddings& embeddings);

}  // namespace intaglio
