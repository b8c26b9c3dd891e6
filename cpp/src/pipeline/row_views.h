// Views of ranges of a tensor's rows. Each is made once, since making one allocates, which the
// loop must not do.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "intaglio/tensor.h"

namespace intaglio {

class RowViews {
 public:
  RowViews() = default;
  explicit RowViews(Tensor whole) : whole_(std::move(whole)) {}

  const Tensor& whole() const { return whole_; }
  // Returns the rows [begin, end).
  const Tensor& at(std::int64_t begin, std::int64_t end) {
    const auto found = views_.find({begin, end});
    if (found != views_.end()) return found->second;
    return views_[{begin, end}] = whole_.rows(begin, end);
  }

 private:
  Tensor whole_;
  std::map<std::pair<std::int64_t, std::int64_t>, Tensor> views_;
};

}  // namespace intaglio
