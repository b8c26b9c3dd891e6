#include "text/unigram.h"

#include <algorithm>

#include "text/unicode.h"
#include "text/unigram_tables.h"

namespace intaglio {
namespace {

constexpr double kUnknownPenalty = 10.0;  // as in sentencepiece

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
      unknown_id_(tables.unk),
      byte_fallback_(tables.byte_fallback) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  for (std::size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    byte_ids_[byte] = trie_.find(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
  }
}

// Returns the best path to every position where a character ends, by the Viterbi algorithm.
std::vector<Unigram::PathEnd> Unigram::best_paths(std::string_view word) const {
  std::vector<PathEnd> paths(word.size() + 1);
  for (std::size_t at = 0; at < word.size();) {
    const double score = paths[at].score;
    const auto relax = [&](std::size_t end, double candidate, std::uint32_t id) {
      if (paths[end].begin == kUnreached || candidate > paths[end].score) {
        paths[end] = {candidate, at, id};
      }
    };
    const std::size_t character = utf8_length(word[at]);
    bool known = false;
    trie_.for_each_prefix(word.substr(at), [&](std::size_t length, std::uint32_t id) {
      relax(at + length, scores_[id] + score, id);
      known = known || length == character;
    });
    if (!known) relax(at + character, unknown_score_ + score, unknown_id_);
    at += character;
  }
  return paths;
}

void Unigram::encode(std::string_view word, std::vector<std::int64_t>& ids) const {
  const auto paths = best_paths(word);
  std::vector<std::size_t> ends;  // where the pieces end, last piece first
  for (std::size_t end = word.size(); end > 0; end = paths[end].begin) ends.push_back(end);
  std::size_t begin = 0;
  for (std::size_t i = ends.size(); i-- > 0;) {
    const std::size_t end = ends[i];
    // Neighbouring unknown pieces become one.
    if (i > 0 && paths[end].id == unknown_id_ && paths[ends[i - 1]].id == unknown_id_) continue;
    append_piece(word.substr(begin, end - begin), ids);
    begin = end;
  }
}

void Unigram::append_piece(std::string_view piece, std::vector<std::int64_t>& ids) const {
  const std::uint32_t id = trie_.find(piece);
  const auto byte_token = [&](char byte) { return byte_ids_[static_cast<unsigned char>(byte)]; };
  if (id != Trie::kNone) {
    ids.push_back(id);
  } else if (byte_fallback_ && std::ranges::count(piece, Trie::kNone, byte_token) == 0) {
    for (const char byte : piece) ids.push_back(byte_token(byte));
  } else {
    ids.push_back(unknown_id_);
  }
}

}  // namespace intaglio
