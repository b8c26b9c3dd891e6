// Turns prompts into the transformer's text inputs.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "intaglio/backend.h"
#include "intaglio/bundle.h"
#include "intaglio/embedding.h"
#include "intaglio/tokenizer.h"

namespace intaglio {

// A text, and what notes call it.
struct NamedText {
  std::string text, name;
};

class TextStage {
 public:
  // Returns what runs the encoder of this name.
  using ChooseBackend = std::function<const Backend&(const std::string& encoder)>;
  // The bundle must have a prompt and encoders; requests for other bundles are refused before. With
  // `in_turn` an encoder is loaded when it runs, and let go before the next one is loaded. Then the
  // backends must outlive this object.
  TextStage(const Bundle& bundle, ChooseBackend choose, bool in_turn);
  // Adds a note, which has the name of the text, for each encoder that does not read all of it.
  // Throws InputError for broken UTF-8. Safe to call from several threads at once.
  std::vector<TextConditioning> encode(const std::vector<NamedText>& texts,
                                       std::vector<std::string>& notes) const;

 private:
  struct Encoder {
    const TextEncoder* description = nullptr;
    std::unique_ptr<Tokenizer> tokenizer;
    std::unique_ptr<Session> session;  // null where it is loaded in turn
  };
  struct Encoded {
    // Not defined where the encoder does not give it.
    Tensor hidden;  // [1, length, width]
    Tensor pooled;  // [1, width]
    int used = 0;   // tokens without padding
    bool truncated = false;
  };
  using Parts = std::map<std::string, Encoded>;  // by encoder
  static Encoded run(const Encoder& encoder, const Session& session, const std::string& prompt);
  void note_cuts(const NamedText& text, const Parts& encoded,
                 std::vector<std::string>& notes) const;
  TextConditioning join(const Parts& encoded) const;
  Tensor join_text(const Parts& encoded) const;
  Tensor join_pooled(const Parts& encoded) const;

  const Bundle& bundle_;
  const Prompt& prompt_;
  const ChooseBackend choose_;
  std::map<std::string, Encoder> encoders_;
};

}  // namespace intaglio
