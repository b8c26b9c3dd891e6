// Whether a call gives the transformer the inputs that it takes.
#pragma once

#include <vector>

#include "intaglio/bundle.h"
#include "intaglio/generate_options.h"

namespace intaglio {

// Checks the prompt, the class or the embeddings, and the distilled guidance: what the bundle takes
// is given, and nothing else. Texts must be UTF-8.
void validate_inputs(const Bundle& bundle, const GenerateOptions& options,
                     std::vector<Problem>& problems);

// Throws InputError for embeddings that the transformer cannot take, and where the negative ones
// are missing although a step runs the unconditional branch.
void check_embeddings(const Bundle& bundle, const PromptEmbeddings& embeddings, bool unconditional);

// Throws UsageError when the bundle has no text encoders.
void check_encoders(const Bundle& bundle);

}  // namespace intaglio
