#include "text/unigram.h"

#include <algorithm>

#include "text/unicode.h"
#include "text/unigram_tables.h"

namespace intaglio {
namespace {

constexpr double kUnknownPenalty = 10.0;  // sentencepiece's

Trie trie_of(const std::vector<std::string>& pieces) {
  std::vector<std::pair<std::string, std::uint32_t>> entries;
  entries.reserve(pieces.size());
  for (const std::string& piece : pieces) {
    entries.emplace_back(piece, static_cast<std::uint32_t>(entries.size()));
  }
  return Trie(std::move(entries));
}

}  // namespace

Unigram::Unigram(const UnigramTables& tables)
    : trie_(trie_of(tables.pieces)),
      scores_(tables.scores),
      unknown_score_(*std::ranges::min_element(scores_) - kUnknownPenalty),
      unknown_(tables.unk),
      byte_fallback_(tables.byte_fallback) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  for (std::size_t byte = 0; byte < bytes_.size(); ++byte) {
    bytes_[byte] = trie_.at(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
  }
}

// The best path to every place where a character ends.
std::vector<Unigram::Step> Unigram::best_path(std::string_view word) const {
  std::vector<Step> steps(word.size() + 1);
  for (std::size_t at = 0; at < word.size();) {
    const double score = steps[at].score;
    const auto propose = [&](std::size_t end, double candidate, std::uint32_t id) {
      if (steps[end].begin == kUnreached || candidate > steps[end].score) {
        steps[end] = {candidate, at, id};
      }
    };
    const std::size_t character = utf8_length(word[at]);
    bool known = false;
    trie_.prefixes(word.substr(at), [&](std::size_t length, std::uint32_t id) {
      propose(at + length, scores_[id] + score, id);
      known = known || length == character;
    });
    if (!known) propose(at + character, unknown_score_ + score, unknown_);
    at += character;
  }
  return steps;
}

void Unigram::encode(std::string_view word, std::vector<std::int64_t>& ids) const {
  const auto steps = best_path(word);
  std::vector<std::size_t> ends;  // of the pieces, last first
  for (std::size_t end = word.size(); end > 0; end = steps[end].begin) ends.push_back(end);
  std::size_t begin = 0;
  for (std::size_t i = ends.size(); i-- > 0;) {
    const std::size_t end = ends[i];
    // Neighbouring unknown pieces are one.
    if (i > 0 && steps[end].id == unknown_ && steps[ends[i - 1]].id == unknown_) continue;
    append_piece(word.substr(begin, end - begin), ids);
    begin = end;
  }
}

void Unigram::append_piece(std::string_view piece, std::vector<std::int64_t>& ids) const {
  const std::uint32_t id = trie_.at(piece);
  const auto byte_token = [&](char byte) { return bytes_[static_cast<unsigned char>(byte)]; };
  if (id != Trie::kNone) {
    ids.push_back(id);
  } else if (byte_fallback_ && std::ranges::count(piece, Trie::kNone, byte_token) == 0) {
    for (const char byte : piece) ids.push_back(byte_token(byte));
  } else {
    ids.push_back(unknown_);
  }
}

}  // namespace intaglio
