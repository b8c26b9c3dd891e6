#include "pipeline/validate_inputs.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include "intaglio/error.h"
#include "pipeline/problems.h"
#include "text/unicode.h"

namespace intaglio {

namespace {

// A bundle that is drawn by class takes the class and no text.
void validate_class(const Bundle& bundle, const GenerateOptions& options,
                    std::vector<Problem>& problems) {
  const std::string last = std::to_string(bundle.classes->count - 1);
  const std::string way_out = bundle.name + " is drawn by class, give --class N from 0 to " + last;
  const auto refuse = [&](const char* field, const std::string& what) {
    problems.push_back({field, what + ": " + way_out});
  };
  if (options.prompt) refuse("prompt", "--prompt does not fit");
  if (options.prompt_embeds) refuse("prompt_embeds", "--prompt-embeds does not fit");
  if (!options.negative_prompt.empty()) refuse("negative_prompt", "--negative-prompt does not fit");
  if (!options.class_label) return refuse("class_label", "--class is missing");
  const int label = *options.class_label;
  if (label < 0 || label >= bundle.classes->count)
    refuse("class_label", "--class " + std::to_string(label) + " does not exist");
}

void validate_text(const Bundle& bundle, const GenerateOptions& options,
                   std::vector<Problem>& problems) {
  const bool encodes = !bundle.prompt->encoders.empty();
  const auto refuse = [&](const char* field, const std::string& message) {
    problems.push_back({field, message});
  };
  if (options.class_label) {
    refuse("class_label", "--class does not fit: " + bundle.name + " is drawn by " +
                              (encodes ? "prompt, give --prompt TEXT"
                                       : "embeddings, give --prompt-embeds F.safetensors"));
  }
  if (options.prompt && options.prompt_embeds) {
    refuse("prompt_embeds", "--prompt and --prompt-embeds exclude each other: give one");
  } else if (options.prompt_embeds && !options.negative_prompt.empty()) {
    refuse("negative_prompt",
           "--negative-prompt goes with --prompt: with --prompt-embeds it belongs in that file, "
           "see `intaglio embed --help`");
  } else if (options.prompt || (!options.prompt_embeds && !encodes)) {
    collect(problems, "prompt", [&] { check_encoders(bundle); });
  } else if (!options.prompt_embeds) {
    refuse("prompt", "--prompt is missing: " + bundle.name +
                         " is drawn by prompt, give --prompt TEXT or --prompt-embeds "
                         "F.safetensors");
  }
  // Both texts are checked, since a negative prompt that no step uses still goes into the PNG.
  if (options.prompt) collect(problems, "prompt", [&] { check_utf8(*options.prompt); });
  collect(problems, "negative_prompt", [&] { check_utf8(options.negative_prompt); });
}

void validate_distilled_guidance(const Bundle& bundle, const GenerateOptions& options,
                                 std::vector<Problem>& problems) {
  const auto refuse = [&](const std::string& message) {
    problems.push_back({"distilled_guidance", message});
  };
  if (!bundle.input(Role::guidance)) {
    if (options.distilled_guidance) {
      refuse("--distilled-guidance does not fit: the transformer of " + bundle.name +
             " has no input for it, leave it out");
    }
    return;
  }
  const auto guidance =
      options.distilled_guidance ? options.distilled_guidance : bundle.defaults.distilled_guidance;
  if (!guidance) {
    refuse("--distilled-guidance is missing: the transformer of " + bundle.name +
           " takes one and the bundle has no default, give a number such as 3.5");
  } else if (!std::isfinite(static_cast<float>(*guidance))) {
    refuse("--distilled-guidance must be a finite number");
  } else if (*guidance < 0) {
    refuse("--distilled-guidance must not be below 0: give a number such as 3.5");
  }
}

// Returns the shape that the input takes for one prompt with S tokens: "[1, S, 40] float32".
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
  throw InputError(name + " must hold 1 for tokens and 0 for padding, and at least one 1");
}

// Z-Image's graph takes the number of ones as the length of the prompt.
void check_padding_is_last(const std::string& name, const Tensor& mask) {
  if (std::ranges::is_sorted(mask.floats(), std::ranges::greater())) return;
  throw InputError(name + " marks padding before a token: put all tokens first");
}

void check_part(const Bundle& bundle, const std::string& name, const Tensor& tensor, Role role,
                std::int64_t tokens) {
  const GraphTensor* input = bundle.input(role);
  if (!input) {
    if (tensor.defined())
      throw InputError(name + " is not an input of " + bundle.name + ": leave it out");
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
  if (role != Role::text_mask) return;
  check_mask(name, tensor);
  if (bundle.family == "z-image") check_padding_is_last(name, tensor);
}

void check_conditioning(const Bundle& bundle, const std::string& prefix,
                        const TextConditioning& embedding, std::int64_t tokens) {
  check_part(bundle, prefix + "prompt_embeds", embedding.text, Role::text, tokens);
  check_part(bundle, prefix + "prompt_attention_mask", embedding.text_mask, Role::text_mask,
             tokens);
  check_part(bundle, prefix + "pooled_prompt_embeds", embedding.pooled, Role::pooled, tokens);
}

}  // namespace

void validate_inputs(const Bundle& bundle, const GenerateOptions& options,
                     std::vector<Problem>& problems) {
  if (bundle.classes) {
    validate_class(bundle, options, problems);
  } else {
    validate_text(bundle, options, problems);
  }
  validate_distilled_guidance(bundle, options, problems);
  const auto refuse_transparent = [&](const char* field, const std::string& flag,
                                      const std::optional<Image>& mask) {
    if (mask && mask->transparent)
      problems.push_back({field,
                          flag + " has transparent parts, and programs differ in what those mean: "
                                 "paint it white and black, and save it without transparency",
                          ExitCode::bad_input});
  };
  refuse_transparent("mask", "--mask", options.mask);
  refuse_transparent("ma_tokens", "--ma-tokens", options.ma_tokens);
}

void check_embeddings(const Bundle& bundle, const PromptEmbeddings& embeddings,
                      bool unconditional) {
  const auto tokens_of = [](const TextConditioning& embedding) {
    const Shape& shape = embedding.text.shape();
    return shape.size() > 1 ? std::max<std::int64_t>(shape[1], 1) : 1;
  };
  const std::int64_t tokens = tokens_of(embeddings.positive);
  // Z-Image's graph looks positions up in a table, which is known to be long enough up to here.
  if (bundle.family == "z-image" && tokens > bundle.prompt->max_sequence_length) {
    throw InputError("prompt_embeds has " + std::to_string(tokens) + " tokens where " +
                     bundle.name + " takes up to " +
                     std::to_string(bundle.prompt->max_sequence_length) +
                     ": make them shorter, or export with a larger max_sequence_length");
  }
  check_conditioning(bundle, "", embeddings.positive, tokens);
  if (!embeddings.negative) {
    if (!unconditional) return;
    throw InputError(
        "the prompt embeddings lack negative_prompt_embeds, which CFG needs: add them (`intaglio "
        "embed --negative-prompt TEXT`), or give --cfg-scale 1");
  }
  const std::int64_t negative = tokens_of(*embeddings.negative);
  if (negative != tokens) {
    throw InputError("negative_prompt_embeds has " + std::to_string(negative) +
                     " tokens where prompt_embeds has " + std::to_string(tokens) +
                     ": make both of one length");
  }
  check_conditioning(bundle, "negative_", *embeddings.negative, tokens);
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
