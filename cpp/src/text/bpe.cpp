#include "text/bpe.h"

#include <functional>
#include <queue>
#include <stdexcept>

#include "text/clip_tables.h"
#include "text/unicode.h"

namespace intaglio {
namespace {

std::uint64_t pair_key(std::uint32_t left, std::uint32_t right) {
  return (static_cast<std::uint64_t>(left) << 32) | right;
}

}  // namespace

std::array<std::string, 256> Bpe::byte_alphabet() {
  std::array<std::string, 256> alphabet;
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    append_utf8(alphabet[byte], visible ? byte : next++);
  }
  return alphabet;
}

Bpe::Bpe(const std::array<std::int64_t, 256>& bytes, const std::vector<IdMerge>& merges)
    : inner_(bytes), final_(bytes) {
  merges_.reserve(merges.size());
  std::uint32_t rank = 0;
  for (const IdMerge& merge : merges)
    merges_.insert_or_assign(pair_key(merge.left, merge.right), Merge{rank++, merge.merged});
}

Bpe::Bpe(const ClipTables& tables) {
  const auto id_of = [&](const std::string& token) {
    const auto found = tables.vocab.find(token);
    return found == tables.vocab.end() ? kNone : found->second;
  };
  const auto alphabet = byte_alphabet();
  const std::int64_t unknown = tables.unk.value_or(kNone);
  const auto or_unknown = [&](std::int64_t id) { return id == kNone ? unknown : id; };
  for (std::size_t byte = 0; byte < alphabet.size(); ++byte) {
    inner_[byte] = or_unknown(id_of(alphabet[byte]));
    final_[byte] = or_unknown(id_of(alphabet[byte] + tables.end_of_word_suffix));
  }
  merges_.reserve(tables.merges.size());
  std::string left, right, joined;
  std::uint32_t rank = 0;
  for (const std::string& merge : tables.merges) {
    const auto space = merge.find(' ');
    if (space == std::string::npos) {
      throw std::invalid_argument("has the merge \"" + merge + "\", which is not a pair of tokens");
    }
    left.assign(merge, 0, space);
    right.assign(merge, space + 1);
    joined = left + right;
    const std::int64_t ids[] = {id_of(left), id_of(right), id_of(joined)};
    for (const std::int64_t id : ids) {
      if (id == kNone) {
        throw std::invalid_argument("has the merge \"" + merge + "\", which is not in its vocab");
      }
    }
    const auto key =
        pair_key(static_cast<std::uint32_t>(ids[0]), static_cast<std::uint32_t>(ids[1]));
    merges_.insert_or_assign(key, Merge{rank++, static_cast<std::uint32_t>(ids[2])});
  }
}

const Bpe::Merge* Bpe::find(const Symbol& left, const Symbol& right) const {
  const auto found = merges_.find(pair_key(left.id, right.id));
  return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::merge(std::vector<Symbol>& symbols) const {
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto at = [&](int i) -> Symbol& { return symbols[static_cast<std::size_t>(i)]; };
  const auto push_candidate = [&](int left) {
    if (left < 0 || at(left).next < 0) return;
    const Merge* merge = find(at(left), at(at(left).next));
    if (merge != nullptr) queue.push({merge->rank, left, merge->id});
  };
  for (int i = 0; i < static_cast<int>(symbols.size()); ++i) push_candidate(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = at(best.left);
    // One of the two symbols may have been merged since this candidate was pushed.
    if (left.merged || left.next < 0) continue;
    Symbol& right = at(left.next);
    const Merge* merge = find(left, right);
    if (merge == nullptr || merge->id != best.id) continue;
    left.id = best.id;
    left.next = right.next;
    right.merged = true;
    if (right.next >= 0) at(right.next).previous = best.left;
    push_candidate(left.previous);
    push_candidate(best.left);
  }
}

void Bpe::encode(std::string_view word, std::vector<std::int64_t>& ids) const {
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (std::size_t i = 0; i < word.size(); ++i) {
    const auto byte = static_cast<unsigned char>(word[i]);
    const std::int64_t id = (i + 1 == word.size() ? final_ : inner_)[byte];
    if (id == kNone) continue;
    const int position = static_cast<int>(symbols.size());
    if (position > 0) symbols.back().next = position;
    symbols.push_back({static_cast<std::uint32_t>(id), position - 1, -1, false});
  }
  merge(symbols);
  for (const Symbol& symbol : symbols) {
    if (!symbol.merged) ids.push_back(symbol.id);
  }
}

}  // namespace intaglio
