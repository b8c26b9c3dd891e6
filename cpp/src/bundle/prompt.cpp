#include "bundle/prompt.h"

#include <algorithm>

#include "bundle/graph.h"

namespace intaglio {

namespace {

// Returns the number of channels of the encoder's output of that role, for which the runtime has to
// allocate memory.
int width_of(const Node& node, const TextEncoder& encoder, const Role& role) {
  const auto& outputs = encoder.graph.outputs;
  const auto it = std::ranges::find(outputs, role, &GraphTensor::role);
  if (it == outputs.end())
    node.refuse("names an encoder that has no output of role " + to_string(role));
  const auto* width = it->axes.empty() ? nullptr : std::get_if<std::int64_t>(&it->axes.back());
  if (!width) node.refuse("names an encoder whose " + to_string(role) + " has no fixed last axis");
  return static_cast<int>(*width);
}

TextEncoder read_encoder(const Node& node) {
  TextEncoder encoder{.graph = read_graph(node.at("graph")),
                      .tokenizer = node.file_path("tokenizer"),
                      .max_length = node.positive("max_length")};
  // There has to be room for the two special tokens.
  if (encoder.max_length < 2) node.at("max_length").refuse("must be at least 2");
  if (node.has("dropped")) encoder.dropped = node.positive("dropped");
  if (encoder.dropped >= encoder.max_length)
    node.at("dropped").refuse("leaves no token of max_length");
  if (node.has("quantized")) {
    encoder.quantized = node.at("quantized").get<std::string>("scheme");
    encoder.quantization_error = node.at("quantized").get<double>("error");
  }
  const auto inputs = node.at("graph").at("inputs").items();
  for (std::size_t i = 0; i < inputs.size(); ++i)
    check_role(inputs[i], encoder.graph.inputs[i].role, {Role::token_ids, Role::text_mask});
  const auto outputs = node.at("graph").at("outputs").items();
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const Role role = encoder.graph.outputs[i].role;
    check_role(outputs[i], role, {Role::hidden, Role::pooled});
    width_of(outputs[i], encoder, role);
  }
  return encoder;
}

const TextEncoder& find_encoder(const Node& node, const Prompt& prompt) {
  const auto it = prompt.encoders.find(node.as<std::string>());
  if (it == prompt.encoders.end()) node.refuse("names an encoder that the bundle does not have");
  return it->second;
}

TextSegment read_segment(const Node& node, const Prompt& prompt) {
  TextSegment segment{.encoders = node.list<std::string>("encoders"),
                      .length = node.positive("length")};
  std::int64_t width = 0;
  for (const Node& name : node.at("encoders").items()) {
    const TextEncoder& encoder = find_encoder(name, prompt);
    width += width_of(name, encoder, Role::hidden);
    if (segment.length > encoder.max_length - encoder.dropped) {
      node.at("length").refuse("is longer than what its encoders give");
    }
  }
  if (width > prompt.text_width) node.at("encoders").refuse("give more channels than text_width");
  return segment;
}

Prompt read_prompt(const Node& node) {
  Prompt prompt;
  prompt.max_sequence_length = node.positive("max_sequence_length");
  prompt.text_width = node.positive("text_width");
  for (const auto& [name, encoder] : node.at("encoders").members()) {
    prompt.encoders[name] = read_encoder(encoder);
  }
  for (const Node& item : node.at("text").items()) {
    prompt.text.push_back(read_segment(item, prompt));
  }
  if (prompt.text.empty() && !prompt.encoders.empty()) node.at("text").refuse("is empty");
  prompt.pooled = node.list<std::string>("pooled");
  for (const Node& name : node.at("pooled").items()) {
    width_of(name, find_encoder(name, prompt), Role::pooled);
  }
  node.get_if("text_mask", prompt.text_mask);
  if (node.has("mask_padding")) {
    prompt.mask_padding = node.positive("mask_padding");
    if (prompt.text_mask.empty()) node.at("mask_padding").refuse("is for a prompt with text_mask");
  }
  // The mask marks tokens of one encoder, so it fits a text that has no other part.
  const std::vector<std::string> masked{prompt.text_mask};
  if (!prompt.text_mask.empty() && !prompt.encoders.empty() &&
      (prompt.text.size() != 1 || prompt.text.front().encoders != masked)) {
    node.at("text_mask").refuse("must name the one encoder of the one segment of text");
  }
  return prompt;
}

Classes read_classes(const Node& node) {
  const Classes classes{.count = node.positive("count"), .null = node.get<int>("null")};
  if (classes.null < 0) node.at("null").refuse("must be at least 0");
  return classes;
}

// The manifest has to say how to make every input that the transformer takes.
void check_prompt(const Node& node, const Prompt& prompt, const Bundle& bundle) {
  if (!bundle.input(Role::text)) node.refuse("is for a transformer that has no input of role text");
  if (prompt.encoders.empty()) return;  // then the given embeddings are checked
  if (!bundle.input(Role::pooled) != prompt.pooled.empty())
    node.at("pooled").refuse("contradicts the transformer's inputs");
  if (!bundle.input(Role::text_mask) != prompt.text_mask.empty())
    node.refuse("and the transformer's inputs disagree about text_mask");
}

}  // namespace

void read_condition(const Node& root, Bundle& bundle) {
  if (!root.has("classes")) {
    bundle.prompt = read_prompt(root.at("prompt"));
    check_prompt(root.at("prompt"), *bundle.prompt, bundle);
    if (bundle.input(Role::class_label))
      root.at("prompt").refuse("is for a transformer drawn by class");
    return;
  }
  if (root.has("prompt")) root.at("classes").refuse("excludes prompt");
  bundle.classes = read_classes(root.at("classes"));
  for (const Role role : {Role::text, Role::text_mask, Role::pooled}) {
    if (bundle.input(role))
      root.at("classes").refuse("is for a transformer that takes " + to_string(role));
  }
  if (!bundle.input(Role::class_label))
    root.at("classes").refuse("is for a transformer that has no input of role class");
}

}  // namespace intaglio
