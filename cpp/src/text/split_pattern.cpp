#include "text/split_pattern.h"

#include <algorithm>
#include <utility>

namespace intaglio {

CharacterSet::CharacterSet(std::vector<CharRange> ranges) : ranges_(std::move(ranges)) {
  for (char32_t c = 0; c < ascii_.size(); ++c) ascii_[c] = intaglio::contains(ranges_, c);
}

bool CharacterSet::contains(char32_t c) const {
  return c < ascii_.size() ? ascii_[c] : intaglio::contains(ranges_, c);
}

SplitPattern::SplitPattern(std::vector<CharacterSet> sets, std::vector<Steps> alternatives)
    : sets_(std::move(sets)), alternatives_(std::move(alternatives)) {}

std::size_t SplitPattern::match(std::u32string_view text) const {
  std::size_t end = 0;
  for (const Steps& steps : alternatives_)
    if (match(steps, 0, text, 0, end)) return end;
  return 0;
}

// Matches the steps from `step` on at position `at`. A step first takes as many characters as it
// can, then fewer, until the rest matches.
bool SplitPattern::match(const Steps& steps, std::size_t step, std::u32string_view text,
                         std::size_t at, std::size_t& end) const {
  if (step == steps.size()) {
    end = at;
    return true;
  }
  const Step& now = steps[step];
  const CharacterSet& set = sets_[now.set];
  if (now.not_before) {
    if (at < text.size() && set.contains(text[at])) return false;
    return match(steps, step + 1, text, at, end);
  }
  const std::size_t most = std::min(now.most, text.size() - at);
  std::size_t taken = 0;
  while (taken < most && set.contains(text[at + taken])) ++taken;
  for (;; --taken) {
    if (taken < now.least) return false;
    if (match(steps, step + 1, text, at + taken, end)) return true;
    if (taken == 0) return false;
  }
}

}  // namespace intaglio
