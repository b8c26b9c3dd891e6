#include "pipeline/text.h"

#include <algorithm>

namespace intaglio {

namespace {

struct Encoded {
  Tensor hidden;  // [1, length, width]
  Tensor pooled;  // [1, width], empty where the encoder has none
};

std::int64_t last_axis(const GraphTensor& tensor) {
  return std::get<std::int64_t>(tensor.axes.back());
}

Encoded run_encoder(const Session& session, const TextEncoder& encoder, const Tokenizer& tokenizer,
                    const std::string& prompt) {
  const auto ids = tokenizer.encode(prompt, encoder.max_length).ids;
  Tensor token_ids({1, encoder.max_length}, DType::int64);
  std::ranges::copy(ids, token_ids.int64s().begin());
  Encoded encoded;
  std::vector<Binding> outputs;
  for (const GraphTensor& output : encoder.graph.outputs) {
    if (output.role == "hidden") {
      encoded.hidden = Tensor({1, encoder.max_length, last_axis(output)}, DType::float32);
      outputs.push_back({output.role, encoded.hidden});
    } else {
      encoded.pooled = Tensor({1, last_axis(output)}, DType::float32);
      outputs.push_back({output.role, encoded.pooled});
    }
  }
  session.bind({{"token_ids", token_ids}}, outputs)->run();
  return encoded;
}

}  // namespace

TextStage::TextStage(const Bundle& bundle, const Backend& backend) : prompt_(bundle.prompt) {
  for (const auto& [name, encoder] : bundle.prompt.encoders) {
    encoders_[name] = {&encoder, load_tokenizer(bundle.folder / encoder.tokenizer),
                       backend.load(bundle.folder, encoder.graph)};
  }
}

PromptEmbedding TextStage::encode(const std::string& prompt) const {
  std::map<std::string, Encoded> encoded;
  for (const auto& [name, encoder] : encoders_) {
    encoded[name] = run_encoder(*encoder.session, *encoder.description, *encoder.tokenizer, prompt);
  }

  PromptEmbedding embedding{Tensor({1, prompt_.text_length(), prompt_.text_width}, DType::float32),
                            {}};
  auto row = embedding.text.floats().begin();
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
  std::vector<float> pooled;
  for (const std::string& name : prompt_.pooled) {
    const auto part = encoded.at(name).pooled.floats();
    pooled.insert(pooled.end(), part.begin(), part.end());
  }
  embedding.pooled = Tensor({1, static_cast<std::int64_t>(pooled.size())}, DType::float32);
  std::ranges::copy(pooled, embedding.pooled.floats().begin());
  return embedding;
}

}  // namespace intaglio
