#include "pipeline/condition.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "intaglio/error.h"
#include "text/unicode.h"

namespace intaglio {

namespace {

void check_class(const Bundle& bundle, const GenerateOptions& options) {
  const std::string last = std::to_string(bundle.classes->count - 1);
  const std::string way_out = bundle.name + " is drawn by class, give --class N from 0 to " + last;
  const auto refuse = [&](const char* flag, bool given) {
    if (given) throw UsageError(std::string(flag) + " does not fit: " + way_out);
  };
  refuse("--prompt", options.prompt.has_value());
  refuse("--prompt-embeds", options.prompt_embeds.has_value());
  refuse("--negative-prompt", !options.negative_prompt.empty());
  if (!options.class_label) throw UsageError("--class is missing: " + way_out);
  if (*options.class_label < 0 || *options.class_label >= bundle.classes->count)
    throw UsageError("--class " + std::to_string(*options.class_label) + " is none: " + way_out);
}

void check_text(const Bundle& bundle, const GenerateOptions& options) {
  const bool encodes = !bundle.prompt->encoders.empty();
  if (options.class_label) {
    throw UsageError("--class does not fit: " + bundle.name + " is drawn by " +
                     (encodes ? "prompt, give --prompt TEXT"
                              : "embeddings, give --prompt-embeds F.safetensors"));
  }
  if (options.prompt && options.prompt_embeds)
    throw UsageError("--prompt and --prompt-embeds exclude each other: give one");
  if (options.prompt_embeds && !options.negative_prompt.empty()) {
    throw UsageError(
        "--negative-prompt goes with --prompt: with --prompt-embeds it belongs into that file, see "
        "`intaglio embed --help`");
  }
  if (options.prompt || (!options.prompt_embeds && !encodes)) check_encoders(bundle);
  if (!options.prompt && !options.prompt_embeds) {
    throw UsageError("--prompt is missing: " + bundle.name +
                     " is drawn by prompt, give --prompt TEXT or --prompt-embeds "
                     "F.safetensors");
  }
  // Both, and now: a negative prompt that no step asks for still goes into the PNG.
  if (options.prompt) check_utf8(*options.prompt);
  check_utf8(options.negative_prompt);
}

// "[1, S, 40]": the shape of the graph's input of that role, of one prompt with S tokens.
std::string shape_for(const GraphTensor& input) {
  std::string text = "[1";
  for (std::size_t i = 1; i < input.axes.size(); ++i) {
    const auto* size = std::get_if<std::int64_t>(&input.axes[i]);
    text += ", " + (size ? std::to_string(*size) : "S");
  }
  return text + "] float32";
}

bool fits(const Tensor& tensor, const GraphTensor& input, std::int64_t tokens) {
  const Shape& shape = tensor.shape();
  if (tensor.dtype() != DType::float32 || shape.size() != input.axes.size()) return false;
  if (shape.empty() || shape.front() != 1) return false;
  for (std::size_t i = 1; i < shape.size(); ++i) {
    const auto* size = std::get_if<std::int64_t>(&input.axes[i]);
    if (shape[i] != (size ? *size : tokens)) return false;
  }
  return true;
}

void check_mask(const std::string& name, const Tensor& mask) {
  const auto marks = mask.floats();
  const bool marked = std::ranges::find(marks, 1.0F) != marks.end();
  if (marked && std::ranges::all_of(marks, [](float x) { return x == 0.0F || x == 1.0F; })) return;
  throw InputError(name + " must hold 1 for tokens and 0 for padding, and a 1 at least");
}

void check_part(const Bundle& bundle, const std::string& name, const Tensor& tensor,
                const char* role, std::int64_t tokens) {
  const GraphTensor* input = bundle.input(role);
  if (!input) {
    if (tensor.defined())
      throw InputError(name + " is none of the inputs of " + bundle.name + ": leave it out");
    return;
  }
  if (!tensor.defined())
    throw InputError("the prompt embeddings lack " + name + ", which " + bundle.name +
                     " takes as " + shape_for(*input) + ": add it");
  if (!fits(tensor, *input, tokens)) {
    throw InputError(name + " has shape " + to_string(tensor.shape()) + " " +
                     name_of(tensor.dtype()) + " where " + bundle.name + " takes " +
                     shape_for(*input) + " of S >= 1 tokens: make it with this model's encoders");
  }
  if (!std::ranges::all_of(tensor.floats(), [](float x) { return std::isfinite(x); }))
    throw InputError(name + " holds NaN or infinity: give finite numbers");
  if (std::string_view(role) == "text_mask") check_mask(name, tensor);
}

void check_embedding(const Bundle& bundle, const std::string& prefix,
                     const PromptEmbedding& embedding, std::int64_t tokens) {
  check_part(bundle, prefix + "prompt_embeds", embedding.text, "text", tokens);
  check_part(bundle, prefix + "prompt_attention_mask", embedding.text_mask, "text_mask", tokens);
  check_part(bundle, prefix + "pooled_prompt_embeds", embedding.pooled, "pooled", tokens);
}

}  // namespace

void check_condition(const Bundle& bundle, const GenerateOptions& options) {
  if (bundle.classes) {
    check_class(bundle, options);
  } else {
    check_text(bundle, options);
  }
  const bool takes_guidance = bundle.input("guidance") != nullptr;
  if (!takes_guidance && options.distilled_guidance) {
    throw UsageError("--distilled-guidance does not fit: the transformer of " + bundle.name +
                     " has no input for it, leave it out");
  }
  if (!takes_guidance) return;
  const auto guidance =
      options.distilled_guidance ? options.distilled_guidance : bundle.defaults.distilled_guidance;
  if (!guidance) {
    throw UsageError("--distilled-guidance is missing: the transformer of " + bundle.name +
                     " takes one and the bundle has no default, give a number such as 3.5");
  }
  if (!std::isfinite(static_cast<float>(*guidance)))
    throw UsageError("distilled-guidance must be a finite number");
}

void check_embeds(const Bundle& bundle, const PromptEmbeds& embeds, bool unconditional) {
  const auto tokens_of = [](const PromptEmbedding& embedding) {
    const Shape& shape = embedding.text.shape();
    return shape.size() > 1 ? std::max<std::int64_t>(shape[1], 1) : 1;
  };
  const std::int64_t tokens = tokens_of(embeds.positive);
  check_embedding(bundle, "", embeds.positive, tokens);
  if (!embeds.negative) {
    if (!unconditional) return;
    throw InputError(
        "the prompt embeddings lack negative_prompt_embeds, which CFG needs: add them (`intaglio "
        "embed --negative-prompt TEXT`), or give --cfg-scale 1");
  }
  const std::int64_t negative = tokens_of(*embeds.negative);
  if (negative != tokens) {
    throw InputError("negative_prompt_embeds has " + std::to_string(negative) +
                     " tokens where prompt_embeds has " + std::to_string(tokens) +
                     ": make both of one length");
  }
  check_embedding(bundle, "negative_", *embeds.negative, tokens);
}

void check_encoders(const Bundle& bundle) {
  if (bundle.classes)
    throw UsageError(bundle.name +
                     " is drawn by class and reads no prompt: give `intaglio "
                     "generate` --class N");
  if (!bundle.prompt->encoders.empty()) return;
  throw UsageError(
      bundle.name +
      " has no text encoders: give --prompt-embeds F.safetensors, which `intaglio embed` makes "
      "from a bundle of this model with them, or diffusers' encode_prompt and safetensors");
}

}  // namespace intaglio
