#pragma once

#include <cstdint>
#include <string>

namespace intaglio {

// A token that is searched for in the whole text before the text is split into words.
struct AddedToken {
  std::string content;
  std::int64_t id = 0;
  bool normalized = false;  // searched for in the normalized text, not in the raw text
  // Whether the token also covers the white space before or after it; CLIP's tokens never do.
  bool lstrip = false, rstrip = false;
};

}  // namespace intaglio
