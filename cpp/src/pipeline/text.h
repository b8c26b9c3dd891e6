// Prompts to the transformer's text and pooled inputs.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/tokenizer.h"

namespace intaglio {

struct PromptEmbedding {
  Tensor text;    // [1, S, D]
  Tensor pooled;  // [1, P]
};

class TextStage {
 public:
  TextStage(const Bundle& bundle, const Backend& backend);
  // Throws InputError for broken UTF-8. Safe to call from several threads at once.
  PromptEmbedding encode(const std::string& prompt) const;

 private:
  struct Encoder {
    const TextEncoder* description = nullptr;
    std::unique_ptr<Tokenizer> tokenizer;
    std::unique_ptr<Session> session;
  };
  const Prompt& prompt_;
  std::map<std::string, Encoder> encoders_;
};

}  // namespace intaglio
