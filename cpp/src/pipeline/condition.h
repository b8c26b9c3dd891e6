// What a call asks to draw, against what the bundle is drawn by.
#pragma once

#include "intaglio/bundle.h"
#include "intaglio/pipeline.h"

namespace intaglio {

// Prompt, class or embeddings, and distilled guidance: what the bundle takes is there, and nothing
// else. Throws UsageError, and InputError for broken UTF-8.
void check_condition(const Bundle& bundle, const GenerateOptions& options);

// Throws InputError for embeddings that the transformer cannot take, and where the negative ones
// are missing although a step runs the unconditional branch.
void check_embeds(const Bundle& bundle, const PromptEmbeds& embeds, bool unconditional);

// Throws UsageError when the bundle has no text encoders.
void check_encoders(const Bundle& bundle);

}  // namespace intaglio
