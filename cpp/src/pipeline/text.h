// Prompts to the transformer's text inputs.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/embedding.h"
#include "intaglio/tokenizer.h"

namespace intaglio {

class TextStage {
 public:
  // The bundle has a prompt and encoders: others are refused before.
  TextStage(const Bundle& bundle, const Backend& backend);
  // Says in `notes` where an encoder does not read the whole of it; there it is called `name`.
  // Throws InputError for broken UTF-8. Safe to call from several threads at once.
  PromptEmbedding encode(Stream& stream, const std::string& prompt, const std::string& name,
                         std::vector<std::string>& notes) const;

 private:
  struct Encoder {
    const TextEncoder* description = nullptr;
    std::unique_ptr<Tokenizer> tokenizer;
    std::unique_ptr<Session> session;
  };
  struct Encoded {
    Tensor hidden;  // [1, length, width]; not defined where the encoder gives none, as `pooled`
    Tensor pooled;  // [1, width]
    Tensor mask;    // [1, length]
    bool truncated = false;
  };
  static Encoded run(Stream& stream, const Encoder& encoder, const std::string& prompt);
  Tensor join_text(const std::map<std::string, Encoded>& encoded) const;
  Tensor join_pooled(const std::map<std::string, Encoded>& encoded) const;

  const Prompt& prompt_;
  std::map<std::string, Encoder> encoders_;
};

}  // namespace intaglio
