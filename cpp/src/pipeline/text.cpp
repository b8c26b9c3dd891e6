#include "pipeline/text.h"

#include <algorithm>

#include "bundle/files.h"
#include "text/tables.h"

namespace intaglio {

namespace {

std::int64_t last_axis(const GraphTensor& tensor) {
  return std::get<std::int64_t>(tensor.axes.back());
}

std::unique_ptr<Tokenizer> read_tokenizer(const Bundle& bundle, const TextEncoder& encoder) {
  return make_tokenizer(bundle.files->path(encoder.tokenizer),
                        bundle.files->read(encoder.tokenizer));
}

}  // namespace

TextStage::TextStage(const Bundle& bundle, const Backend& backend)
    : prompt_(bundle.prompt.value()) {
  for (const auto& [name, encoder] : prompt_.encoders) {
    encoders_[name] = {&encoder, read_tokenizer(bundle, encoder),
                       backend.load(bundle, encoder.graph)};
  }
}

TextStage::Encoded TextStage::run(Stream& stream, const Encoder& encoder,
                                  const std::string& prompt) {
  const TextEncoder& description = *encoder.description;
  const int length = description.max_length;
  const Tokens tokens = encoder.tokenizer->encode(prompt, length);
  Tensor token_ids({1, length}, DType::int64);
  std::ranges::copy(tokens.ids, token_ids.int64s().begin());
  Encoded encoded;
  encoded.truncated = tokens.truncated;
  encoded.mask = Tensor({1, length}, DType::float32);
  std::fill_n(encoded.mask.floats().begin(), tokens.used, 1.0F);

  std::vector<Binding> inputs, outputs;
  for (const GraphTensor& input : description.graph.inputs)
    inputs.push_back({input.role, input.role == Role::token_ids ? token_ids : encoded.mask});
  for (const GraphTensor& output : description.graph.outputs) {
    const bool hidden = output.role == Role::hidden;
    const Shape shape = hidden ? Shape{1, length, last_axis(output)} : Shape{1, last_axis(output)};
    Tensor& result = hidden ? encoded.hidden : encoded.pooled;
    result = Tensor(shape, DType::float32);
    outputs.push_back({output.role, result});
  }
  encoder.session->bind(stream, inputs, outputs)->run();
  return encoded;
}

TextConditioning TextStage::encode(Stream& stream, const std::string& prompt,
                                   const std::string& name, std::vector<std::string>& notes) const {
  std::map<std::string, Encoded> encoded;
  for (const auto& [key, encoder] : encoders_) {
    encoded[key] = run(stream, encoder, prompt);
    if (encoded[key].truncated) {
      notes.push_back("the " + name + " has more tokens than " + key + " reads (" +
                      std::to_string(encoder.description->max_length) + "): its end is ignored");
    }
  }
  TextConditioning conditioning;
  conditioning.text = join_text(encoded);
  if (!prompt_.pooled.empty()) conditioning.pooled = join_pooled(encoded);
  if (!prompt_.text_mask.empty()) {
    const std::int64_t length = prompt_.text_length();
    conditioning.text_mask = Tensor({1, length}, DType::float32);
    const auto mask = encoded.at(prompt_.text_mask).mask.floats();
    std::copy_n(mask.begin(), length, conditioning.text_mask.floats().begin());
  }
  return conditioning;
}

Tensor TextStage::join_text(const std::map<std::string, Encoded>& encoded) const {
  Tensor text({1, prompt_.text_length(), prompt_.text_width}, DType::float32);
  auto row = text.floats().begin();
  for (const TextSegment& segment : prompt_.text) {
    for (std::int64_t token = 0; token < segment.length; ++token, row += prompt_.text_width) {
      auto target = row;
      for (const std::string& name : segment.encoders) {
        const Tensor& hidden = encoded.at(name).hidden;
        const auto width = hidden.dim(2);
        target = std::copy_n(hidden.floats().begin() + token * width, width, target);
      }
    }
  }
  return text;
}

Tensor TextStage::join_pooled(const std::map<std::string, Encoded>& encoded) const {
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
