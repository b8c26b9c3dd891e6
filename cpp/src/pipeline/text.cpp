#include "pipeline/text.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "bundle/files.h"
#include "platform/process.h"
#include "text/tables.h"
#include "text/unicode.h"

namespace intaglio {

namespace {

std::int64_t last_axis(const GraphTensor& tensor) {
  return std::get<std::int64_t>(tensor.axes.back());
}

std::unique_ptr<Tokenizer> read_tokenizer(const Bundle& bundle, const TextEncoder& encoder) {
  return make_tokenizer(bundle.files->path(encoder.tokenizer),
                        bundle.files->read(encoder.tokenizer));
}

// Returns the end of the text that the tokenizer cuts off, from the first word that is not whole;
// in a long word, as texts without spaces are, from the first character.
std::string_view cut_off(const Tokenizer& tokenizer, std::string_view text, int length) {
  constexpr std::string_view spaces = " \t\r\n";
  constexpr std::size_t long_word = 40;  // bytes
  const auto fits = [&](std::size_t end) {
    return !tokenizer.encode(text.substr(0, end), length).truncated;
  };
  std::vector<std::size_t> ends;  // of the words
  for (std::size_t at = 0; (at = text.find_first_not_of(spaces, at)) != text.npos;)
    ends.push_back(at = std::min(text.find_first_of(spaces, at), text.size()));
  const auto cut = std::ranges::partition_point(ends, fits);
  if (cut == ends.end()) return {};
  std::size_t begin = text.find_first_not_of(spaces, cut == ends.begin() ? 0 : *std::prev(cut));
  if (*cut - begin > long_word) {
    std::vector<std::size_t> characters;
    for (std::size_t at = begin + 1; at < *cut; ++at)
      if (utf8_length(text[at]) > 0) characters.push_back(at);
    const auto character = std::ranges::partition_point(characters, fits);
    if (character != characters.begin()) begin = *std::prev(character);
  }
  return text.substr(begin, ends.back() - begin);
}

// Returns the text in quotation marks, shortened if it is long.
std::string quoted(std::string_view text) {
  constexpr std::size_t longest = 200;  // bytes
  std::size_t end = std::min(text.size(), longest);
  while (end < text.size() && utf8_length(text[end]) == 0) --end;
  std::string result = "\"";
  result += text.substr(0, end);
  result += end < text.size() ? "...\"" : "\"";
  return result;
}

}  // namespace

TextStage::TextStage(const Bundle& bundle, ChooseBackend choose, bool in_turn)
    : bundle_(bundle), prompt_(bundle.prompt.value()), choose_(std::move(choose)) {
  for (const auto& [name, encoder] : prompt_.encoders) {
    encoders_[name] = {&encoder, read_tokenizer(bundle, encoder),
                       in_turn ? nullptr : choose_(name).load(bundle, encoder.graph)};
  }
}

TextStage::Encoded TextStage::run(const Encoder& encoder, const Session& session,
                                  const std::string& prompt) {
  const TextEncoder& description = *encoder.description;
  const int length = description.max_length;
  const Tokens tokens = encoder.tokenizer->encode(prompt, length);
  Tensor token_ids({1, length}, DType::int64);
  std::ranges::copy(tokens.ids, token_ids.int64s().begin());
  Encoded encoded;
  encoded.truncated = tokens.truncated;
  encoded.used = tokens.used;
  Tensor mask({1, length}, DType::float32);
  std::fill_n(mask.floats().begin() + tokens.begin, tokens.used, 1.0F);

  std::vector<Binding> inputs, outputs;
  for (const GraphTensor& input : description.graph.inputs)
    inputs.push_back({input.role, input.role == Role::token_ids ? token_ids : mask});
  for (const GraphTensor& output : description.graph.outputs) {
    const bool hidden = output.role == Role::hidden;
    const Shape shape = hidden ? Shape{1, length, last_axis(output)} : Shape{1, last_axis(output)};
    Tensor& result = hidden ? encoded.hidden : encoded.pooled;
    result = Tensor(shape, DType::float32);
    outputs.push_back({output.role, result});
  }
  session.bind(inputs, outputs)->run();
  return encoded;
}

std::vector<TextConditioning> TextStage::encode(const std::vector<NamedText>& texts,
                                                std::vector<std::string>& notes) const {
  std::vector<Parts> encoded(texts.size());
  for (const auto& [key, encoder] : encoders_) {
    std::unique_ptr<Session> own;
    if (!encoder.session) own = choose_(key).load(bundle_, encoder.description->graph);
    const Session& session = own ? *own : *encoder.session;
    for (std::size_t i = 0; i < texts.size(); ++i)
      encoded[i][key] = run(encoder, session, texts[i].text);
    if (own) {
      own.reset();
      platform::trim_memory();
    }
  }
  std::vector<TextConditioning> conditionings;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    note_cuts(texts[i], encoded[i], notes);
    conditionings.push_back(join(encoded[i]));
  }
  return conditionings;
}

void TextStage::note_cuts(const NamedText& text, const Parts& encoded,
                          std::vector<std::string>& notes) const {
  for (const auto& [key, encoder] : encoders_) {
    if (!encoded.at(key).truncated) continue;
    const int length = encoder.description->max_length;
    notes.push_back("the " + text.name + " has more tokens than " + key + " reads (" +
                    std::to_string(length - encoder.description->dropped) +
                    "): its end is ignored, " +
                    quoted(cut_off(*encoder.tokenizer, text.text, length)));
  }
}

TextConditioning TextStage::join(const Parts& encoded) const {
  TextConditioning conditioning;
  conditioning.text = join_text(encoded);
  if (!prompt_.pooled.empty()) conditioning.pooled = join_pooled(encoded);
  if (!prompt_.text_mask.empty()) {
    const int length = prompt_.text_length();
    const int used =
        encoded.at(prompt_.text_mask).used - prompt_.encoders.at(prompt_.text_mask).dropped;
    conditioning.text_mask = Tensor({1, length}, DType::float32);
    std::fill_n(conditioning.text_mask.floats().begin(),
                std::clamp(used + prompt_.mask_padding, 0, length), 1.0F);
  }
  return conditioning;
}

Tensor TextStage::join_text(const Parts& encoded) const {
  Tensor text({1, prompt_.text_length(), prompt_.text_width}, DType::float32);
  auto row = text.floats().begin();
  for (const TextSegment& segment : prompt_.text) {
    for (std::int64_t token = 0; token < segment.length; ++token, row += prompt_.text_width) {
      auto target = row;
      for (const std::string& name : segment.encoders) {
        const Tensor& hidden = encoded.at(name).hidden;
        const auto width = hidden.dim(2), from = token + prompt_.encoders.at(name).dropped;
        target = std::copy_n(hidden.floats().begin() + from * width, width, target);
      }
    }
  }
  return text;
}

Tensor TextStage::join_pooled(const Parts& encoded) const {
  std::vector<float> joined;
  for (const std::string& name : prompt_.pooled) {
    const auto part = encoded.at(name).pooled.floats();
    joined.insert(joined.end(), part.begin(), part.end());
  }
  Tensor pooled({1, static_cast<std::int64_t>(joined.size())}, DType::float32);
  std::ranges::copy(joined, pooled.floats().begin());
  return pooled;
}

}  // namespace intaglio
