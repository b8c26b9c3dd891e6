// What the text encoders make of a prompt, and its file.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "intaglio/tensor.h"

namespace intaglio {

// Inputs of the transformer, float32; one that the model does not have is not defined().
struct PromptEmbedding {
  Tensor text;       // [1, S, D]
  Tensor text_mask;  // [1, S]: 1 for tokens, 0 for padding
  Tensor pooled;     // [1, P]
};

struct PromptEmbeds {
  PromptEmbedding positive;
  std::optional<PromptEmbedding> negative;  // needed where CFG is on
  std::vector<std::string> notes;           // prompts that were cut; not in the file
};

// Safetensors of F32, F16, BF16, I64 or BOOL under the names of diffusers' arguments:
// prompt_embeds, prompt_attention_mask (or prompt_embeds_mask) and pooled_prompt_embeds, and
// negative_ before each. Throws InputError naming the file.
PromptEmbeds load_prompt_embeds(const std::filesystem::path& path);
// Throws InputError for what is not float32. Written as F32 under a temporary name, then renamed.
void save_prompt_embeds(const std::filesystem::path& path, const PromptEmbeds& embeds);

}  // namespace intaglio
