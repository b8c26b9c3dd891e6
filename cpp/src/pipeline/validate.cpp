#include "intaglio/validate.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <string>

#include "intaglio/options.h"
#include "pipeline/request.h"

namespace intaglio {

namespace {

// Every flag whose value is a keyword in Python, without its dashes, and the name of that keyword.
std::map<std::string, std::string> fields_by_flag() {
  std::map<std::string, std::string> fields{{"image", "image"},
                                            {"mask", "mask"},
                                            {"ma-tokens", "ma_tokens"},
                                            {"prompt-embeds", "prompt_embeds"},
                                            {"latents-in", "latents"},
                                            {"device", "device"},
                                            {"threads", "threads"},
                                            {"prepack", "prepack"},
                                            {"precision", "precision"},
                                            {"onnxruntime", "onnxruntime"},
                                            {"provider-library", "provider_library"}};
  const GenerateOptions options;
  visit_options(options, [&](const OptionInfo& info, const auto&) {
    const std::string flags = flags_of(info);  // "--seed,--seeds"
    for (std::size_t begin = 2; begin < flags.size();) {
      const std::size_t end = std::min(flags.find(',', begin), flags.size());
      fields[flags.substr(begin, end - begin)] = info.name;
      begin = end + 3;
    }
  });
  return fields;
}

}  // namespace

std::string with_field_names(const std::string& message) {
  static const std::map<std::string, std::string> fields = fields_by_flag();
  const auto in_flag = [](char c) {
    return std::islower(static_cast<unsigned char>(c)) != 0 || c == '-';
  };
  const auto in_word = [](char c) {  // of a path, for example
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '/';
  };
  std::string text;
  char quote = '\0';  // the mark in which the command or the quoted text here ends
  for (std::size_t i = 0; i < message.size();) {
    std::size_t end = i;
    const bool inside = i > 0 && in_word(message[i - 1]);
    if (quote == '\0' && !inside && message.compare(i, 2, "--") == 0)
      end = static_cast<std::size_t>(
          std::find_if_not(message.begin() + static_cast<std::ptrdiff_t>(i), message.end(),
                           in_flag) -
          message.begin());
    const auto field = end > i ? fields.find(message.substr(i + 2, end - i - 2)) : fields.end();
    if (field != fields.end()) {
      text += field->second;
      i = end;
      continue;
    }
    if (message[i] == quote) {
      quote = '\0';
    } else if (quote == '\0' && (message[i] == '`' || message[i] == '"')) {
      quote = message[i];
    }
    text += message[i++];
  }
  return text;
}

std::vector<std::string> with_field_names(std::vector<std::string> messages) {
  for (std::string& message : messages) message = with_field_names(message);
  return messages;
}

std::vector<Problem> validate(const Bundle& bundle, const GenerateOptions& options) {
  std::vector<Problem> problems;
  resolve(bundle, options, problems);
  for (Problem& problem : problems) problem.message = with_field_names(problem.message);
  return problems;
}

std::vector<std::string> unused_guidance(const Bundle& bundle, const GenerateOptions& options) {
  return resolve(bundle, options).notes;
}

}  // namespace intaglio
