// Turns prompts into the transformer's text inputs.
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
  // The bundle must have a prompt and encoders; requests for other bundles are refused before.
  TextStage(const Bundle& bundle, const Backend& backend);
  // Adds a note, which calls the prompt `name`, for each encoder that does not read all of it.
  // Throws InputError for broken UTF-8. Safe to call from several threads at once.
  TextConditioning encode(Stream& stream, const std::string& prompt, const std::string& name,
                          std::vector<std::string>& notes) const;

 private:
  struct Encoder {
    const TextEncoder* description = nullptr;
    std::unique_ptr<Tokenizer> tokenizer;
    std::unique_ptr<Session> session;
  };
  struct Encoded {
    // Not defined where the encoder does not give it.
    Tensor hidden;  // [1, length, width]
    Tensor pooled;  // [1, width]
    int used = 0;   // tokens without padding
    bool truncated = false;
  };
  static Encoded run(Stream& stream, const Encoder& encoder, const std::string& prompt);
  Tensor join_text(const std::map<std::string, Encoded>& encoded) const;
  Tensor join_pooled(const std::map<std::string, Encoded>& encoded) const;

  const Prompt& prompt_;
  std::map<std::string, Encoder> encoders_;
};

}  // namespace intaglio
