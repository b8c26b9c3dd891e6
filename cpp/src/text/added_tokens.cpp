#include "text/added_tokens.h"

#include <utility>

#include "text/unicode.h"

namespace intaglio {
namespace {

Trie make_trie(const std::vector<AddedToken>& tokens) {
  std::vector<std::pair<std::string, std::uint32_t>> entries;
  for (const AddedToken& token : tokens)
    entries.emplace_back(token.content, static_cast<std::uint32_t>(entries.size()));
  return Trie(std::move(entries));
}

std::vector<AddedToken> chosen(const std::vector<AddedToken>& tokens, bool normalized,
                               const std::function<std::string(std::string_view)>& normalize) {
  std::vector<AddedToken> kept;
  for (const AddedToken& token : tokens) {
    if (token.normalized != normalized) continue;
    kept.push_back(token);
    if (normalized) kept.back().content = normalize(token.content);
  }
  return kept;
}

}  // namespace

AddedTokens::AddedTokens(const std::vector<AddedToken>& tokens, bool normalized,
                         const std::function<std::string(std::string_view)>& normalize)
    : tokens_(chosen(tokens, normalized, normalize)), trie_(make_trie(tokens_)) {}

void AddedTokens::split(std::string_view text, IdBuffer& buffer, const OnText& on_text) const {
  std::size_t begin = 0;  // of the text that has not been passed on yet
  for (std::size_t at = 0; at < text.size() && !buffer.full();) {
    std::size_t end = 0;
    const AddedToken* token = nullptr;
    trie_.for_each_prefix(text.substr(at), [&](std::size_t length, std::uint32_t index) {
      end = at + length;
      token = &tokens_[index];
    });
    if (token == nullptr) {
      ++at;
      continue;
    }
    if (at > begin) {
      std::string_view before = text.substr(begin, at - begin);
      if (token->lstrip) before.remove_suffix(trailing_space(before));
      if (!before.empty()) on_text(before);
    }
    buffer.ids.push_back(token->id);
    at = end;
    begin = token->rstrip ? end + leading_space(text.substr(end)) : end;
  }
  if (text.size() > begin && !buffer.full()) on_text(text.substr(begin));
}

}  // namespace intaglio
